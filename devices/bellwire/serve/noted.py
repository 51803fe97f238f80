"""Rings that were taken out of their fds and not acted on, in memory that outlives the process.

Each doorbell's fd has a slot. The kernel itself stores there what is taken out of the fd: the count of an eventfd, or a
command. So there is no moment at which a ring is in neither. The slot is cleared when the hook has run. A successor
rings again what it finds.

The kernel does not add to the count in a slot, it replaces it. So each slot of an eventfd has a second count, of older
rings: what was taken before and has not run yet is put there first. A process that is killed between the two steps
leaves a ring in both counts. It then rings once more than the guest has rung, which does no harm.

A successor also notes what the process before was at, until it has done that again itself. If it dies before, the next
one finds the same *suspect*, and does not do it a third time.

Another version of Bellwire may take the file over. The older counts and the suspect lie at its end, so that a version
without them finds the rest in its place. A file of such a version is made longer.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from vfio_user.ioregionfd import SIZE
from vfio_user.mapping import Mapping

EVENTS = 1 << 16
"""Slots for eventfds: more than a device's registers can ring."""
LINES = 64
"""Sockets whose commands have slots. Those of further sockets are lost with the process."""
MOST_COMMANDS = 4096  # taken from one socket at a time: more than it holds, so a reply flushes all, and a flood ends
LINE = (MOST_COMMANDS + 1) * SIZE
"""The bytes of the commands of a socket, and of one that is zero."""
_START = 8 * EVENTS
_OLDER = _START + LINES * LINE
_SUSPECT = _OLDER + 8 * EVENTS
_SIZE = _SUSPECT + 8


class EventSlot(NamedTuple):
    """The counts of an eventfd's rings that have not run.

    ``counter`` has the 8 bytes that were read last, ``older[0]`` the rings that were taken before them.
    """

    counter: memoryview
    older: memoryview


def new_slot() -> EventSlot:
    """A slot that ends with the process."""
    return EventSlot(memoryview(bytearray(8)), memoryview(bytearray(8)).cast("Q"))


class NotedRings:
    """The slots of a device's doorbells: a new memory file, or an ``inherited`` one. It owns the file."""

    def __init__(self, inherited: int | None = None) -> None:
        self.fd = os.memfd_create("bellwire-rings", os.MFD_CLOEXEC) if inherited is None else inherited
        if os.fstat(self.fd).st_size < _SIZE:
            os.ftruncate(self.fd, _SIZE)
        self._view = Mapping(self.fd, 0, _SIZE, write=True).view()
        self.suspect = self._view[_SUSPECT:].cast("Q")
        """One number: what is being done again, 0 for nothing."""

    def event(self, slot: int) -> EventSlot:
        """The slot of an eventfd."""
        if slot >= EVENTS:
            return new_slot()
        at = 8 * slot
        return EventSlot(self._view[at : at + 8], self._view[_OLDER + at : _OLDER + at + 8].cast("Q"))

    def line(self, slot: int) -> memoryview:
        """The bytes of the commands of a socket."""
        return self._view[_START + slot * LINE :][:LINE] if slot < LINES else memoryview(bytearray(LINE))

    def close(self) -> None:
        """Close the file. The memory is freed with the last view."""
        os.close(self.fd)
