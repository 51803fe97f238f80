"""Tells callers of the control socket who are devices: they have the daemon's user, and no business there.

A caller is a device if it is a worker, or a descendant of one. Orphans of a worker become children of the fork server
(PR_SET_CHILD_SUBREAPER), so the way up from any of them leads to the manager. A worker hides its memory, and with it,
under ``ProtectProc=invisible``, its entry in /proc: a process of the daemon's own user that cannot be seen counts as a
device. The kernel keeps the caller's process ID from being
used again while its pidfd is open (SO_PEERPIDFD, Linux 6.5): a caller that has ended meanwhile counts as a device too.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

_SO_PEERPIDFD = 77
_MOST_STEPS = 64  # to the first process


def is_device(connection: socket.socket, pid: int, uid: int) -> bool:
    """Whether the caller ``pid``, a process of the user ``uid``, runs a device of this daemon, or descends from one."""
    if uid not in (0, os.geteuid()):
        return False  # one that may change nothing
    handle = -1
    try:
        with contextlib.suppress(ProcessLookupError):
            handle = _handle(connection)
            return _descends(pid) or (handle >= 0 and _has_ended(handle))
        return True
    finally:
        if handle >= 0:
            os.close(handle)


def _handle(connection: socket.socket) -> int:
    """The caller's pidfd; -1 if this kernel has none to give. Raises ProcessLookupError if the caller has gone."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except ProcessLookupError:
        raise
    except OSError:
        return -1


def _descends(pid: int) -> bool:
    me = os.getpid()
    for _ in range(_MOST_STEPS):
        if pid <= 1:
            return False
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                pid = int(stat.read().rpartition(b")")[2].split()[1])  # the name before it may have any characters
        except OSError:
            return _is_own(pid)
        if pid == me:
            return True
    return True


def _is_own(pid: int) -> bool:
    """Whether a process that cannot be seen is one of this user's: then it hides. Root's cannot be signalled."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def _has_ended(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))
