"""The system calls that a boxed device may use: a base for all devices, and groups that some kinds need in addition.

A call that is not listed is refused. What a process could use against other processes of its user is not in the base:
ptrace, process_vm_*, pidfd_*, kcmp, prlimit of others, the scheduling of others, System V IPC, POSIX queues, changes of
modes, owners, times and attributes of files by path (Landlock does not restrict those), links, handles of files, and
watches on files. No group has what reaches deep into the kernel: io_uring, bpf, userfaultfd, perf, keys, modules.

The log of a migration uses a userfaultfd that was opened before: it hears of faults in user mode only.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from bellwire.vhost.node import Ioctl
from bellwired.box.syscalls import NUMBERS
from vfio_user.written_pages import IOCTLS


class Check(NamedTuple):
    """A condition on the low 32 bits of an argument: ``argument & mask == value``."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF


Way = tuple[Check, ...]
"""Conditions that must all hold. An empty one always holds."""
Rules = dict[str, list[Way]]
"""The allowed calls: any of the ways is enough."""

HOT = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 epoll_wait epoll_pwait epoll_pwait2 epoll_ctl
recvmsg sendmsg recvfrom sendto recvmmsg sendmmsg futex poll ppoll select pselect6 clock_gettime clock_nanosleep
"""

BASE = """
access faccessat faccessat2 open openat openat2 creat close close_range stat fstat lstat newfstatat statx lseek statfs
fstatfs getdents getdents64 getcwd chdir fchdir readlink readlinkat mkdir mkdirat rmdir rename renameat renameat2 unlink
unlinkat ftruncate fallocate fsync fdatasync sync_file_range fadvise64 flock fcntl dup dup2 dup3 pipe pipe2
sendfile copy_file_range umask getxattr lgetxattr fgetxattr
mmap munmap mprotect mremap madvise brk msync mincore memfd_create membarrier
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause restart_syscall
signalfd signalfd4 getitimer setitimer alarm
nanosleep clock_getres gettimeofday time times timerfd_create timerfd_settime timerfd_gettime
epoll_create epoll_create1 eventfd eventfd2 getrandom sched_yield futex_waitv futex_wake futex_wait futex_requeue rseq
set_robust_list set_tid_address
accept accept4 shutdown getsockopt setsockopt getsockname getpeername
getpid gettid getppid getpgrp getuid geteuid getgid getegid getresuid getresgid getgroups getcpu getrusage getrlimit
setrlimit uname sysinfo capget getpriority sched_getaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min get_mempolicy
exit exit_group
"""

THREAD = 0x0001_0000  # CLONE_THREAD
NEW_NAMESPACES = 0x7E02_0080  # CLONE_NEWNS to CLONE_NEWNET, and CLONE_NEWTIME

TERMINAL = (0x5401, 0x5402, 0x5403, 0x5404, 0x5405, 0x540B, 0x5411, 0x5413, 0x5414, 0x5441, 0x80045430, 0x40045431)
"""TCGETS, TCSETS*, TCGETA, TCFLSH, TIOCOUTQ, TIOCGWINSZ, TIOCSWINSZ, TIOCGPTPEER, TIOCGPTN, TIOCSPTLCK; no TIOCSTI."""
DESCRIPTORS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS and TIOCGWINSZ (is it a terminal?), FIONREAD, FIONBIO, FIONCLEX and FIOCLEX."""
BLOCK = (0x1268, 0x1277, 0x127F, 0x80081272)
"""BLKSSZGET, BLKDISCARD, BLKZEROOUT and BLKGETSIZE64."""
TUN = (0x400454CA, 0x400454CC, 0x400454D0, 0x400454D8, 0x400454D9, 0x400454DC, 0x400454E2, 0x800454D2)
"""TUNSETIFF, TUNSETOWNER, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETVNETLE, TUNSETCARRIER, TUNGETIFF."""
INTERFACE = (0x8913, 0x8921)
"""SIOCGIFFLAGS and SIOCGIFMTU."""

SHAPE_OF_TYPE = 0xF  # a socket's type, without SOCK_NONBLOCK and SOCK_CLOEXEC
PRCTL = (3, 15, 16, 23, 39, 0x53564D41)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_SET_VMA (malloc names memory)."""

SILENT = {"clone3": 38, "seccomp": 1}
"""Calls that are refused without a word, with this errno.

libc tries clone3 and takes clone on ENOSYS: the flags of clone3 lie in memory, where no filter can check them. A filter
of a device's own could answer the refused calls in the manager's place, so seccomp(2) never reaches the manager.
"""


def _ioctls(numbers: Iterable[int]) -> Rules:
    return {"ioctl": [(Check(1, number),) for number in numbers]}


def _sockets(*kinds: tuple[int, int]) -> list[Way]:
    """Of a family and a type; type 0 is any."""
    return [
        (Check(0, family), Check(1, kind, SHAPE_OF_TYPE)) if kind else (Check(0, family),) for family, kind in kinds
    ]


def _all(names: str) -> Rules:
    return {name: [()] for name in names.split()}


UNIX, STREAM, DATAGRAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM)
_INTERNET = [(int(family), 0) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)]

GROUPS: dict[str, Rules] = {
    "sockets": {"socket": _sockets((UNIX, 0)), **_all("bind listen connect")},
    "network": {"socket": _sockets((UNIX, 0), *_INTERNET), **_all("bind listen connect")},
    "processes": _all("clone fork vfork execve execveat wait4 waitid kill tgkill setpgid setsid"),
    "files": _all(
        "truncate chmod fchmod fchmodat utimensat link linkat symlink symlinkat inotify_init1 inotify_add_watch"
    ),
    # What bundled devices need; their options say so, no operator has to.
    "aio": _all("io_setup io_submit io_getevents io_pgetevents io_destroy io_cancel"),
    "block": _ioctls(BLOCK),
    "pty": {**_ioctls(TERMINAL), **_all("symlink symlinkat")},
    "listening": {"socket": _sockets((UNIX, STREAM)), **_all("bind listen")},
    "connecting": {"socket": _sockets((UNIX, STREAM)), **_all("connect")},
    "datagrams": {"socket": _sockets((UNIX, DATAGRAM)), **_all("bind")},
    "tap": {"socket": _sockets(*_INTERNET, (UNIX, 0)), **_ioctls(TUN + INTERFACE), **_all("bind")},
    "vhost": _ioctls(Ioctl),
    "mounting": _all("setns unshare mount mknod mknodat"),
}
_DEEP = """
ptrace process_vm_readv process_vm_writev process_madvise pidfd_open pidfd_getfd kcmp bpf perf_event_open
userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key init_module finit_module
delete_module kexec_load kexec_file_load reboot mount umount2 move_mount open_tree fsopen pivot_root chroot
unshare setns open_by_handle_at name_to_handle_at fanotify_init iopl ioperm
"""
DEEP = frozenset(_DEEP.split())
"""Calls that devices do not make. One that does has most likely been taken over."""
WORDS = ("sockets", "network", "processes", "files")
"""The groups that an operator may add to a device, beside single calls."""


def allowed(groups: Iterable[str], pid: int) -> Rules:
    """The rules of the base and ``groups`` (or single calls) for the process ``pid``."""
    rules: Rules = _all(HOT + BASE)
    own = Check(0, pid)
    rules["kill"] = rules["tgkill"] = [(own,)]
    rules["prlimit64"] = [(Check(0, 0),), (own,)]
    rules["clone"] = [(Check(0, THREAD, THREAD | NEW_NAMESPACES),)]
    rules["prctl"] = [(Check(0, option),) for option in PRCTL]
    rules["socketpair"] = [(Check(0, UNIX), Check(1, int(kind), SHAPE_OF_TYPE)) for kind in (1, 5)]
    rules |= _ioctls(DESCRIPTORS + IOCTLS)
    for group in groups:
        for name, ways in (GROUPS.get(group) or {group: [()]}).items():
            rules[name] = [*rules.get(name, []), *ways]
    return rules


def remedy(name: str, first: int = 0) -> str:
    """The word by which an operator allows the call ``name``, whose first argument is ``first``."""
    if name == "socket":
        return "sockets" if first == UNIX else "network"
    for word in WORDS:
        if word != "network" and name in GROUPS[word]:
            return word
    return name


def advice(word: str) -> str:
    """What to do about a refused call, for a log line."""
    if word in DEEP:
        return "devices do not need it: this one may have been taken over"
    return f'sandbox = ["{word}"] in its file allows it'


def unknown(words: Iterable[str]) -> list[str]:
    """Those of ``words`` that are neither a group for operators nor a system call that can be allowed."""
    return [word for word in words if word not in WORDS and (word not in NUMBERS or word in SILENT)]
