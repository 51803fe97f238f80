"""The errors of /dev/kvm: one small tree, rooted in `KvmError`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping


class KvmError(OSError):
    """The base of this package's errors.

    `errno` says what kind of failure it is. `ioctl` names the request ("KVM_IOEVENTFD"; "" if none was made), and
    `arguments` has its arguments, by the kernel's field names.
    """

    def __init__(self, code: int, reason: str, ioctl: str = "", arguments: Mapping[str, int] | None = None):
        self.ioctl = ioctl
        self.arguments = dict(arguments or {})
        message = f"{_call(ioctl, self.arguments)}: {reason}" if ioctl else reason
        super().__init__(code, message)


class UnavailableError(KvmError):
    """/dev/kvm cannot be opened, or speaks another version of the API. The message has a remedy."""


class IoctlError(KvmError):
    """The kernel refused a request."""


class ConflictError(IoctlError):
    """EEXIST: the address, slot, id or eventfd is taken already."""


class NotFoundError(IoctlError):
    """ENOENT: there is nothing registered that matches the request exactly."""


class UnsupportedError(IoctlError):
    """ENOTTY: this kernel has no such request."""


class InvalidArgumentError(KvmError, ValueError):
    """An argument that this package refuses, because the kernel would misunderstand it or accept it silently."""

    def __init__(self, reason: str, ioctl: str = "", arguments: Mapping[str, int] | None = None):
        super().__init__(errno.EINVAL, reason, ioctl, arguments)


_BY_ERRNO = {errno.EEXIST: ConflictError, errno.ENOENT: NotFoundError, errno.ENOTTY: UnsupportedError}


def ioctl_error(code: int, ioctl: str, arguments: Mapping[str, int]) -> IoctlError:
    """Return the exception for errno `code` of the request named `ioctl`."""
    reason = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
    return _BY_ERRNO.get(code, IoctlError)(code, reason, ioctl, arguments)


def _call(ioctl: str, arguments: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name}={_number(value)}" for name, value in arguments.items())
    return f"{ioctl}({listed})"


def _number(value: int) -> str:
    """Small numbers are counts and fds and read best in decimal; large ones are addresses and masks."""
    return str(value) if -4096 < value < 4096 else f"{value:#x}"
