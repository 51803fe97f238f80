"""Rings that were taken out of their fds and not acted on, in memory that outlives the process.

Each doorbell's fd has a slot. The kernel itself stores there what is taken out of the fd: the count of an eventfd, or a
command. So there is no moment at which a ring is in neither. The slot is cleared when the hook has run. A successor
rings again what it finds.
"""

from __future__ import annotations

import os

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


class NotedRings:
    """The slots of a device's doorbells: a new memory file, or an ``inherited`` one. It owns the file."""

    def __init__(self, inherited: int | None = None) -> None:
        self.fd = os.memfd_create("bellwire-rings", os.MFD_CLOEXEC) if inherited is None else inherited
        if inherited is None:
            os.ftruncate(self.fd, _START + LINES * LINE)
        self._view = Mapping(self.fd, 0, _START + LINES * LINE, write=True).view()

    def event(self, slot: int) -> memoryview:
        """The 8 bytes of an eventfd's count."""
        return self._view[8 * slot : 8 * slot + 8] if slot < EVENTS else memoryview(bytearray(8))

    def line(self, slot: int) -> memoryview:
        """The bytes of the commands of a socket."""
        return self._view[_START + slot * LINE :][:LINE] if slot < LINES else memoryview(bytearray(LINE))

    def close(self) -> None:
        """Close the file. The memory is freed with the last view."""
        os.close(self.fd)
