"""Gives up what a process may do beyond its user's rights: capabilities, core dumps, new privileges by execve(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Collection

from vfio_user import written_pages

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 23, 24, 38
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 28, 47, 4
_NOROOT_LOCKED = 0b11
_CAPGET, _CAPSET = 125, 126
_VERSION_3 = 0x2008_0522
CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
EFFECTIVE, PERMITTED = 0, 1
MOST_CAPABILITIES = 64


def capabilities(which: int = EFFECTIVE) -> int:
    """The effective, or the permitted, capabilities of this thread, as bits."""
    header, data = struct.pack("<Ii", _VERSION_3, 0), ctypes.create_string_buffer(24)
    if _libc.syscall(_CAPGET, header, data):
        raise OSError(ctypes.get_errno(), "capget")
    words = struct.unpack("<6I", data.raw)
    return int(words[which] | words[3 + which] << 32)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, ``parent``, ends; at once if it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def bind(kept: Collection[int]) -> bool:
    """Drop all capabilities except ``kept`` from the bounding set. False without CAP_SETPCAP, which that needs."""
    if not capabilities() >> CAP_SETPCAP & 1:
        return False
    for each in range(MOST_CAPABILITIES):
        if each not in kept and _libc.prctl(_PR_CAPBSET_READ, each, 0, 0, 0) == 1:
            _libc.prctl(_PR_CAPBSET_DROP, each, 0, 0, 0)
    _libc.prctl(_PR_SET_SECUREBITS, _NOROOT_LOCKED, 0, 0, 0)
    return True


def become(user: int, group: int) -> None:
    """Take another user and group, without further groups, and keep the permitted capabilities for now.

    Needs CAP_SETUID and CAP_SETGID. Raises OSError.
    """
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def keep_only(kept: Collection[int]) -> int:
    """Drop all capabilities except ``kept``. Returns those that this thread has left, as bits."""
    permitted = capabilities(PERMITTED)
    if not permitted:  # capset(2) may be forbidden, as by the unit's SystemCallFilter=
        return 0
    left = permitted & sum(1 << each for each in kept)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    low, high = left & 0xFFFF_FFFF, left >> 32
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc.syscall(_CAPSET, struct.pack("<Ii", _VERSION_3, 0), data):
        raise OSError(ctypes.get_errno(), "capset")
    return left


def hide_memory(*, hidden: bool = True) -> None:
    """Let no other process of the same user read or write this one's memory, or trace it. It leaves no core dump.

    A process inherits that at a fork, and can undo it if it is not ``hidden``.
    """
    _libc.prctl(_PR_SET_DUMPABLE, int(not hidden), 0, 0, 0)


def open_page_log() -> None:
    """Open what tells which pages this process has written, for the log of a migration: a boxed process cannot."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's, after a change of the user
    written_pages.get_ready()


def no_new_privileges() -> None:
    """Ignore set-user-ID bits and file capabilities from now on, in all that this thread starts."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def open_memory_count() -> int:
    """A descriptor by which another process can count this one's memory later on; -1 if there is none."""
    with contextlib.suppress(OSError):
        return os.open("/proc/self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
    return -1


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
