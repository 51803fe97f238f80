"""A device that has been taken over: it tries what an attacker would, and logs what came of each."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable

from bellwire import Bar, Option, PciDevice

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X32 = 0x4000_0000


def call(number: int, *arguments: object) -> int:
    """A system call by its number. Raises OSError."""
    ctypes.set_errno(0)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def first_import() -> str:
    """Whether the module itself is run in the box already."""
    try:
        open("/etc/shadow").close()
    except OSError as error:
        return type(error).__name__
    return "done"


def outcome(work: Callable[[], object]) -> str:
    """What came of an attack."""
    try:
        work()
    except OSError as error:
        return f"{type(error).__name__} {os.strerror(error.errno) if error.errno else error}"
    except (RuntimeError, MemoryError) as error:
        return type(error).__name__
    return "done"


AT_IMPORT = first_import()


class TakenOver(PciDevice, vendor=0x1234, device=0x0666, class_code=0x088000, name="taken_over"):
    """Tries what an attacker would."""

    manager = Option(0, help="the manager's process")
    neighbour = Option(0, help="another worker's process")
    elsewhere = Option("", help="a folder that is not this device's")
    only = Option("", help="the name of the only attack to try")
    control = Option("", help="the control socket, without its leading slash")

    mmio = Bar(0, size=4096)
    go = mmio.reg(0x00)

    @go.write
    def attack(self, _: int) -> None:
        """Try everything. Several outcomes go into a line, since lines of the log are limited."""
        found: dict[str, str] = {}
        for name, work in self.attacks().items():
            if self.only not in ("", name):
                continue
            if len(found) == 20 or name == "execve":
                self.log.info("attacks %s", json.dumps(found))
                found.clear()
            found[name] = outcome(work)
        self.log.info("attacks %s", json.dumps(found))
        self.log.info("attacks are over")

    def attacks(self) -> dict[str, Callable[[], object]]:
        """By name."""
        manager, neighbour, away = self.manager, self.neighbour, f"/{self.elsewhere}"
        buffer = ctypes.create_string_buffer(4096)
        at = ctypes.c_void_p(ctypes.addressof(buffer))
        piece = struct.pack("QQ", ctypes.addressof(buffer), 8)

        def import_time() -> None:
            if AT_IMPORT != "done":
                raise PermissionError(1, AT_IMPORT)

        def tell_control() -> None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(f"/{self.control}")
                asked = {"method": "org.bellwire.Manager.Stop", "parameters": {"name": "neighbour"}}
                sock.sendall(json.dumps(asked).encode() + b"\0")
                answer = sock.recv(4096)
                if b"error" in answer or not answer:
                    raise PermissionError(1, "refused")

        def by_an_orphan() -> None:
            ours, theirs = socket.socketpair()
            if os.fork() == 0:
                parent = os.getpid()
                if os.fork() == 0:
                    while os.getppid() == parent:
                        os.sched_yield()
                    try:
                        tell_control()
                        theirs.send(b"done")
                    except OSError:
                        theirs.send(b"no")
                os._exit(0)
            if ours.recv(8) != b"done":
                raise PermissionError(1, "refused")

        def bomb() -> None:
            end = threading.Event()
            threads = [threading.Thread(target=end.wait) for _ in range(64)]
            try:
                for thread in threads:
                    thread.start()
            finally:
                end.set()

        def read(path: str) -> Callable[[], object]:
            return lambda: os.close(os.open(path, os.O_RDONLY))

        def write(path: str) -> Callable[[], object]:
            return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

        def fork() -> None:
            if (pid := os.fork()) == 0:
                os._exit(0)
            os.waitpid(pid, 0)

        def shell() -> None:
            call(59, b"/bin/sh", 0, 0)  # execve

        return {
            "import time": import_time,
            "read shadow": read("/etc/shadow"),
            "read image": read(f"{away}/neighbour.img"),
            "write image": write(f"{away}/neighbour.img"),
            "truncate image": lambda: os.truncate(f"{away}/neighbour.img", 0),
            "unlink image": lambda: os.unlink(f"{away}/neighbour.img"),
            "write outside": write(f"{away}/planted"),
            "write a device file": write(f"{away}/config/devices.d/planted.toml"),
            "change a mode": lambda: os.chmod(f"{away}/neighbour.img", 0o666),
            "change an owner": lambda: os.chown(f"{away}/neighbour.img", 65534, 65534),
            "link": lambda: os.link(f"{away}/neighbour.img", f"{away}/linked"),
            "rename": lambda: os.rename(f"{away}/neighbour.img", f"{away}/renamed"),
            "mknod": lambda: os.mknod(f"{away}/node", 0o600 | 0o060000, os.makedev(8, 0)),
            "control socket": tell_control,
            "control socket by an orphan": by_an_orphan,
            "read the manager's memory": read(f"/proc/{manager}/mem"),
            "write the manager's memory": write(f"/proc/{manager}/mem"),
            "read a neighbour's memory": read(f"/proc/{neighbour}/mem"),
            "the manager's environment": read(f"/proc/{manager}/environ"),
            "the manager's descriptors": lambda: os.listdir(f"/proc/{manager}/fd"),
            "process_vm_readv": lambda: call(310, manager, piece, 1, piece, 1, 0),
            "process_vm_writev": lambda: call(311, manager, piece, 1, piece, 1, 0),
            "ptrace": lambda: call(101, 16, manager, 0, 0),  # PTRACE_ATTACH
            "ptrace a neighbour": lambda: call(101, 0x4206, neighbour, 0, 0),  # PTRACE_SEIZE
            "kill a neighbour": lambda: os.kill(neighbour, 0),
            "kill the manager": lambda: os.kill(manager, 0),
            "kill all": lambda: os.kill(-1, 0),
            "tgkill": lambda: call(234, manager, manager, 0),
            "rt_sigqueueinfo": lambda: call(129, manager, 0, at),
            "pidfd_open": lambda: os.pidfd_open(manager),
            "pidfd_getfd": lambda: call(438, 0, 0, 0),
            "pidfd_send_signal": lambda: call(424, 0, 0, 0, 0),
            "prlimit of a neighbour": lambda: call(302, neighbour, 7, 0, at),
            "kcmp": lambda: call(312, manager, neighbour, 0, 0, 0),
            "renice a neighbour": lambda: os.setpriority(os.PRIO_PROCESS, neighbour, 19),
            "pin a neighbour": lambda: os.sched_setaffinity(neighbour, {0}),
            "migrate_pages": lambda: call(256, neighbour, 64, at, at),
            "execveat a memfd": lambda: call(322, os.memfd_create("x"), b"", 0, 0, 0x1000),
            "fork": fork,
            "vfork": lambda: call(58),
            "clone3": lambda: call(435, at, 64),
            "unshare": lambda: call(272, 0x1000_0000),  # CLONE_NEWUSER
            "setns": lambda: call(308, 0, 0),
            "mount": lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, 0),
            "umount": lambda: call(166, away.encode(), 2),
            "move_mount": lambda: call(429, 0, b"", 0, b"", 0),
            "open_tree": lambda: call(428, -100, b"/", 1),
            "fsopen": lambda: call(430, b"tmpfs", 0),
            "pivot_root": lambda: call(155, b"/", b"/"),
            "chroot": lambda: os.chroot("/"),
            "init_module": lambda: call(175, at, 16, b""),
            "finit_module": lambda: call(313, 0, b"", 0),
            "kexec_load": lambda: call(246, 0, 0, 0, 0),
            "reboot": lambda: call(169, 0, 0, 0, 0),
            "inet socket": lambda: socket.socket(socket.AF_INET).close(),
            "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
            "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close(),
            "vsock": lambda: socket.socket(socket.AF_VSOCK).close(),
            "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
            "datagram pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
            "keyctl": lambda: call(250, 0, -3, 1),
            "add_key": lambda: call(248, b"user", b"x", b"y", 1, -3),
            "bpf": lambda: call(321, 0, at, 128),
            "perf_event_open": lambda: call(298, at, 0, -1, -1, 0),
            "io_uring_setup": lambda: call(425, 8, at),
            "io_uring_enter": lambda: call(426, 0, 0, 0, 0, 0, 0),
            "userfaultfd": lambda: call(323, 0),
            "memfd_secret": lambda: call(447, 0),
            "name_to_handle_at": lambda: call(303, -100, b"/", at, at, 0),
            "open_by_handle_at": lambda: call(304, -100, at, 0),
            "fanotify_init": lambda: call(300, 0, 0),
            "inotify_init": lambda: call(294, 0),
            "seccomp": lambda: call(317, 1, 8, struct.pack("<HxxxxxxQ", 1, ctypes.addressof(buffer))),
            "prctl dumpable": lambda: call(157, 4, 1, 0, 0, 0),
            "prctl seccomp": lambda: call(157, 22, 2, at, 0, 0),
            "prctl ptracer": lambda: call(157, 0x59616D61, -1, 0, 0, 0),
            "setuid": lambda: call(105, 0),
            "personality": lambda: call(135, 0x0040000),
            "shmget": lambda: call(29, 0x42, 4096, 0o1600),
            "mq_open": lambda: call(240, b"planted", os.O_CREAT | os.O_RDWR, 0o600, 0),
            "push a key into a terminal": lambda: call(16, 0, 0x5412, b"x"),
            "iopl": lambda: call(172, 3),
            "modify_ldt": lambda: call(154, 0, at, 16),
            "syslog": lambda: call(103, 3, at, 16),
            "execve": shell,  # if it is allowed, nothing comes after it
            "eat memory": lambda: bytearray(512 << 20) if self.only else None,
            "thread bomb": lambda: bomb() if self.only else None,
            "thread": lambda: threading.Thread(target=bool).start(),
            "own mapping": lambda: mmap.mmap(-1, 4096).close(),
        }
