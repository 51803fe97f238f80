"""The eventfds of a test's guest: of doorbells that a device has lent, and of interrupts that it hands on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bellwire.declare.doorbell import IoRegion
from vfio_user import IrqIndex
from vfio_user.eventfds import SIZE, take

if TYPE_CHECKING:
    from bellwire.testing.guest import Guest


class Wires:
    """Made when a device first asks for one; closed with the guest."""

    def __init__(self, guest: Guest[Any]) -> None:
        self._guest = guest
        self._bells: dict[tuple[IoRegion, int], int] = {}
        self._lent: set[tuple[IoRegion, int]] = set()
        self._vectors: dict[tuple[IrqIndex, int], int] = {}
        self._counter = bytearray(SIZE)

    def lend(self, row: IoRegion, offset: int) -> int:
        """The eventfd of a doorbell."""
        bell = row, offset
        if bell not in self._bells:
            self._bells[bell] = _eventfd()
        self._lent.add(bell)
        return self._bells[bell]

    def take_back(self, row: IoRegion, offset: int) -> None:
        """The doorbell is the device's again, with the rings that nobody has read."""
        bell = row, offset
        if bell in self._lent:
            self._lent.remove(bell)
            if count := take(self._bells[bell], self._counter):
                self._guest.device.core.ring_in_row(bell, count)

    def ring(self, row: IoRegion, offset: int) -> bool:
        """Ring a doorbell, if it is lent."""
        if (row, offset) not in self._lent:
            return False
        os.eventfd_write(self._bells[row, offset], 1)
        return True

    def interrupt(self, index: IrqIndex, vector: int) -> int:
        """The eventfd of a vector, which the guest watches."""
        fd = self._vectors.get((index, vector))
        if fd is None:
            fd = self._vectors[index, vector] = _eventfd()
            self._guest.watch_fd(fd, lambda: self._interrupted(index, vector))
        return fd

    def close(self) -> None:
        """Close all of them."""
        for fd in (*self._bells.values(), *self._vectors.values()):
            os.close(fd)

    def _interrupted(self, index: IrqIndex, vector: int) -> None:
        self._guest.interrupts[index, vector] += take(self._vectors[index, vector], self._counter)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
