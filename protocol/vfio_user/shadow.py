"""Shadow doorbells: an eventfd that counts rings, and beside it a cell of shared memory with the value of the last one.

The client, or its kernel, stores the value that the guest has written, and then signals the eventfd. The server, which
has the same memory mapped, reads the cell after the eventfd. If several rings come before that, it finds their number
and the last value.

Both sides map memory that the other one has. A file that shrinks while it is mapped raises SIGBUS at the next access,
so each side wants it sealed against that: the server seals its own, and the client checks.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Literal

from vfio_user.errors import VfioUserError
from vfio_user.eventfds import is_eventfd, signal
from vfio_user.io_fds import ShadowIoEventFd
from vfio_user.mapping import Mapping

CELL = 8
"""The distance between a server's cells, in bytes: each fits the widest value, and is aligned for it."""

# The fcntl module has no names for these before Python 3.12.
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1, 2, 4
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Cells:
    """A server's memory for ``count`` values. ``fd`` is a memfd that nobody can shrink or grow; this object owns it.

    It is made, or ``inherited`` from a process that has ended.
    """

    def __init__(self, count: int, inherited: int | None = None) -> None:
        size = -(-count * CELL // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = _sealed(size) if inherited is None else inherited
        try:
            self._mapping = Mapping(self.fd, 0, size, write=True)
        except BaseException:
            os.close(self.fd)
            raise
        self._free = iter(range(0, count * CELL, CELL))

    def take(self, size: int) -> tuple[int, memoryview]:
        """A cell for values of ``size`` bytes that nothing uses yet: its offset, and a view with the value as its item.

        A peer can write anything there at any time. A load of the item is a single one, so it never mixes two values.
        """
        offset = next(self._free)
        return offset, self._mapping.view()[offset : offset + size].cast(_FORMATS[size])

    def close(self) -> None:
        """Release the memory, and close the memfd. Views that still exist show zeros."""
        self._mapping.detach()
        os.close(self.fd)


class ShadowBell:
    """The client's end of a shadow doorbell. The caller owns the descriptors of ``sub``, and keeps them open meanwhile.

    ``address`` is the cell's address in this process, for KVM. ``sealed`` tells whether the file cannot shrink, so that
    :meth:`ring` may store. (The kernel may store in any case: a fault there harms nobody.)

    Raises VfioUserError, with the reason, for a doorbell that cannot be used: one of any width, a cell that is not
    aligned or lies outside the file, a file that cannot be mapped, or a descriptor that is no eventfd.
    """

    def __init__(self, sub: ShadowIoEventFd) -> None:
        if sub.size not in _FORMATS:
            raise VfioUserError(f"a shadow ioeventfd of size {sub.size} has no room for a value")
        if sub.shadow_offset % sub.size:
            raise VfioUserError(f"shadow offset {sub.shadow_offset:#x} is no multiple of {sub.size}")
        if not is_eventfd(sub.fd):
            raise VfioUserError("the descriptor of a shadow ioeventfd is no eventfd")
        self.sealed = _cannot_shrink(sub.shadow_fd)
        self._mapping = Mapping(sub.shadow_fd, sub.shadow_offset, sub.size, write=True)
        self.address = self._mapping.address
        self._cell = self._mapping.view().cast(_FORMATS[sub.size])
        self._fd = sub.fd
        os.set_blocking(self._fd, False)  # the server may fill the counter

    def ring(self, data: bytes) -> None:
        """Store ``data``, which has the doorbell's size, and signal the eventfd."""
        self._cell[0] = int.from_bytes(data, "little")
        signal(self._fd)

    def close(self) -> None:
        """Unmap the cell."""
        self._cell.release()
        self._mapping.detach()


def _sealed(size: int) -> int:
    """A memfd of ``size`` bytes that nobody can shrink or grow."""
    fd = os.memfd_create("bellwire-shadow", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _cannot_shrink(fd: int) -> bool:
    """Whether the file is sealed against shrinking. Seals it, if its owner allows that and has not done so."""
    with contextlib.suppress(OSError):  # no memfd, or its seals are sealed
        fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SHRINK)
    with contextlib.suppress(OSError):
        return bool(fcntl.fcntl(fd, _GET_SEALS) & _SEAL_SHRINK)
    return False
