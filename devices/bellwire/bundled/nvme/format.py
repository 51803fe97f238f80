"""Format NVM (§5.23): empties namespaces, and can change their block size."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte, Command
from bellwire.bundled.nvme.history import Happening
from bellwire.bundled.nvme.namespace import FORMATS, Namespace
from bellwire.bundled.nvme.self_test import Result
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.task import Task
from bellwire.storage import Disk

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

METADATA_OR_PROTECTION = 0x1F << 4
USER_DATA_ERASE = 1


class Format:
    """Formats namespaces of ``controller``. Their blocks always read as zeros afterwards."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def execute(self, command: Command) -> Task:
        """Check the command, hold its namespaces, and return the task that empties their disks."""
        number, erase = command.cdw10 & 0xF, command.cdw10 >> 9 & 7
        if erase > USER_DATA_ERASE:  # there is no cryptographic erase
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if number >= len(FORMATS) or command.cdw10 & METADATA_OR_PROTECTION:
            raise CommandError(Status.INVALID_FORMAT, Byte.CDW10)
        shift = FORMATS[number]
        namespaces = self._controller.namespaces
        spaces = namespaces.attached if command.nsid == ALL_NAMESPACES else [namespaces.active(command.nsid)]
        for space in spaces:
            space.check_free()
            space.check_writable()
            if space.disk.size < 1 << shift:
                raise CommandError(Status.INVALID_FORMAT, Byte.CDW10)
        self._controller.self_test.interrupt(Result.FORMATTED, spaces)
        namespaces.hold(spaces, Status.FORMAT_IN_PROGRESS)
        start = struct.pack("<IB3xI", command.nsid, 0, command.cdw10)
        self._controller.history.add(Happening.FORMAT_START, start)
        disks = [space.disk for space in spaces]

        def ended(error: Exception | None) -> int:
            return self._ended(command, spaces, shift, error)

        return Task(_empty, disks, 1 << shift, ended=ended, alone=True)

    def _ended(self, command: Command, spaces: Sequence[Namespace], shift: int, error: Exception | None) -> int:
        controller = self._controller
        status = 0
        if error is None:
            for space in spaces:
                space.format(shift)
        else:
            status = (error.status if isinstance(error, CommandError) else Status.WRITE_FAULT).field << 1
        controller.namespaces.hold(spaces, None)
        end = struct.pack("<IBBHI", command.nsid, 0, int(error is not None), 0, status)
        controller.history.add(Happening.FORMAT_END, end)
        controller.save()
        return 0


def _empty(disks: Sequence[Disk], block: int) -> None:
    """Empty the disks, on a thread. With O_DIRECT, a medium may refuse blocks as small as the new ones."""
    for disk in disks:
        if disk.direct:
            try:
                disk.read([bytearray(block)], 0)
            except OSError:
                raise CommandError(Status.INVALID_FORMAT, Byte.CDW10) from None
    for disk in disks:
        disk.empty()
