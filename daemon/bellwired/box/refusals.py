"""Answers the system calls that a box refuses, and says which they were.

The filter of a box hands refused calls to a listener (seccomp_unotify(2)) in a process outside of the box. That process
answers each with EPERM. It only gives names: a refused call fails too if nobody listens, then with ENOSYS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable

from bellwired.box.calls import remedy
from bellwired.box.syscalls import name

_RECEIVE, _SEND = 0xC050_2100, 0xC018_2101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("<QqiI")  # struct seccomp_notif_resp
MOST = 1000
"""Calls that are answered. Later ones cost the listener nothing: the kernel refuses them with ENOSYS."""


class Refusals:
    """Owns ``listener``. ``tell("ptrace()", "ptrace")`` is called once for each kind of call: that word allows it."""

    def __init__(self, listener: int, tell: Callable[[str, str], None]) -> None:
        self._listener = listener
        self._tell = tell
        self._told: set[tuple[str, str]] = set()
        self._answered = 0

    def fileno(self) -> int:
        """The listener, which can be read while a call waits; -1 after :meth:`close`."""
        return self._listener

    def answer(self) -> bool:
        """Answer one call, if one waits. False once no more will be answered: the listener is closed then."""
        if self._listener < 0:
            return False
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notification)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR) and not self._over():  # the caller has been killed meanwhile
                return True
            self.close()
            return False
        identity, _, _, number, _, _, first, second, *_ = _NOTIFICATION.unpack(notification)
        try:
            fcntl.ioctl(self._listener, _SEND, _RESPONSE.pack(identity, 0, -errno.EPERM, 0))
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.close()
                return False
        called = name(number)
        shown = f"ioctl({second & 0xFFFF_FFFF:#x})" if called == "ioctl" else f"{called}()"
        refused = shown, remedy(called, first)
        if refused not in self._told:
            self._told.add(refused)
            self._tell(*refused)
        self._answered += 1
        if self._answered >= MOST:
            self.close()
        return self._listener >= 0

    def _over(self) -> bool:
        """Whether all processes in the box have ended. The listener would stay ready to be read for ever."""
        poll = select.poll()
        poll.register(self._listener, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def close(self) -> None:
        """Close the listener. A second call does nothing."""
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1
