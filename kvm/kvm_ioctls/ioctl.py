"""How an ioctl is numbered (<asm-generic/ioctl.h>) and how it is made.

The call goes through ctypes, which lets go of the GIL for its whole length, so that a vCPU runs while other
threads do. `fcntl.ioctl` will not do: from Python 3.14 on it repeats a call that a signal interrupted, and
KVM_RUN must return then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import ioctl_error

KVMIO = 0xAE

libc_ioctl = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, use_errno=True)(
    ("ioctl", ctypes.CDLL(None))
)
"""ioctl(fd, request, pointer or plain number); -1 is a failure that `ctypes.get_errno` explains."""


class Ioctl(NamedTuple):
    """One request: its name in <linux/kvm.h>, and its number."""

    name: str
    number: int


def _IO(name: str, nr: int) -> Ioctl:  # noqa: N802 - the C macros' names
    """A request whose argument is a plain number, or nothing."""
    return Ioctl(name, KVMIO << 8 | nr)


def _IOW(name: str, nr: int, argument: type[Any]) -> Ioctl:  # noqa: N802
    """A request whose argument the kernel reads."""
    return Ioctl(name, 1 << 30 | ctypes.sizeof(argument) << 16 | KVMIO << 8 | nr)


def _IOR(name: str, nr: int, argument: type[Any]) -> Ioctl:  # noqa: N802
    """A request whose argument the kernel fills in."""
    return Ioctl(name, 2 << 30 | ctypes.sizeof(argument) << 16 | KVMIO << 8 | nr)


def _IOWR(name: str, nr: int, argument: type[Any]) -> Ioctl:  # noqa: N802
    """A request whose argument the kernel reads and fills in."""
    return Ioctl(name, 3 << 30 | ctypes.sizeof(argument) << 16 | KVMIO << 8 | nr)


def invoke(fd: int, request: Ioctl, argument: Any = 0, /, **named: int) -> int:
    """Make the request and return the kernel's answer (0 or more); raise `IoctlError` where it refuses.

    `argument` is a structure, a ctypes buffer or a plain number. `named` is what an error shows of it;
    a structure's fields are shown anyway.
    """
    by_value = isinstance(argument, int)
    answer: int = libc_ioctl(fd, request.number, argument if by_value else ctypes.byref(argument))
    if answer < 0:
        code = ctypes.get_errno()
        raise ioctl_error(code, request.name, named or _fields(argument))
    return answer


def _fields(argument: Any) -> Mapping[str, int]:
    """Return the plain fields of a structure by name: arrays, padding and nested structures say little."""
    if not isinstance(argument, ctypes.Structure):
        return {}
    fields = ((field[0], getattr(argument, field[0])) for field in argument._fields_)
    return {name: value for name, value in fields if isinstance(value, int) and not name.startswith("pad")}
