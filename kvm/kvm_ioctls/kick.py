"""The signal that gets a vCPU's thread out of KVM_RUN.

Its handler does nothing: that the kernel delivers the signal at all is what ends KVM_RUN. Yet there must be
one, for the default action would end the process; and Python lets only the main thread install it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

from .errors import InvalidArgumentError

KICK_SIGNAL = signal.SIGRTMIN
"""The signal that `Vcpu.kick` sends. It has no other use by custom, as SIGUSR1 has."""

_tgkill = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, use_errno=True)(
    ("tgkill", ctypes.CDLL(None))
)


def _awake(number: int, frame: FrameType | None) -> None:
    """Do nothing: that a signal is handled at all ends the system call."""


def install_kick_handler() -> None:
    """Take over `KICK_SIGNAL`: in the main thread (else ValueError), before the first `kick`."""
    signal.signal(KICK_SIGNAL, _awake)


def kick_thread(native_id: int) -> None:
    """Send `KICK_SIGNAL` to a thread of this process, which may have ended meanwhile.

    That is why this is tgkill(2) on the kernel's thread id, and not `signal.pthread_kill`: the latter's
    `pthread_t` dangles once the thread is gone, whereas a stale id is at worst another thread's, which then
    wakes up for nothing.
    """
    if signal.getsignal(KICK_SIGNAL) is signal.SIG_DFL:
        raise InvalidArgumentError(
            f"nothing handles signal {int(KICK_SIGNAL)}, so a kick would end this process: "
            "call kvm_ioctls.install_kick_handler() in the main thread first"
        )
    _tgkill(os.getpid(), native_id, KICK_SIGNAL)
