"""The errors of the vfio-user protocol: one small tree, each with the errno that goes on the wire."""

from __future__ import annotations

import errno
import os
from typing import Self

LARGEST_ERRNO = 4095  # the kernel's MAX_ERRNO


class VfioUserError(Exception):
    """Base of all errors of this package. ``errno`` is the number for an error reply."""

    def __init__(self, message: str, errno_: int = errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = errno_

    def again(self) -> Self:
        """The same error for another caller: an exception keeps the frames of all who raise it."""
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        return error


class ProtocolError(VfioUserError):
    """The peer sent a message that the protocol does not allow; the message says which, and which field."""


class FramingError(ProtocolError):
    """The connection cannot go on. ``answer_to``: the id and command for a last error reply; None for no reply."""

    def __init__(self, message: str, answer_to: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.answer_to = answer_to


class RemoteError(VfioUserError):
    """The peer answered with an error reply. A number that is no errno counts as EIO (the text allows 0)."""

    def __init__(self, command: str, errno_: int) -> None:
        if not 0 < errno_ <= LARGEST_ERRNO:
            errno_ = errno.EIO
        super().__init__(f"{command} failed at the other end: {os.strerror(errno_)} (errno {errno_})", errno_)
        self.command = command


class Disconnected(VfioUserError):
    """The peer has closed the connection."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the peer has closed the connection", errno.ENOTCONN)


class TimedOut(VfioUserError):
    """The peer did not answer, or did not read, in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno.ETIMEDOUT)


class Stalemate(VfioUserError):
    """The client does not answer a DMA message (EDEADLK): it waits for a reply that device code holds up."""

    def __init__(self, asked: str, waited_for: str) -> None:
        super().__init__(
            f"the client does not answer {asked} while it waits for the reply to {waited_for}: "
            "have it share guest memory (QEMU: memory-backend-memfd,share=on), or do this from a doorbell or a timer",
            errno.EDEADLK,
        )


class DmaFault(VfioUserError):
    """A DMA outside the client's maps (EFAULT), or a write to a read-only one (EPERM)."""

    def __init__(self, address: int, size: int, why: str, errno_: int = errno.EFAULT) -> None:
        super().__init__(f"{size} bytes at {address:#x}: {why}", errno_)
        self.address = address
        self.size = size
        self.why = why
