"""The dialects of the protocol: what a text has its own way. All that is not listed here is as ratified."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeVar

from vfio_user.constants import Command, Mechanism
from vfio_user.errors import VfioUserError
from vfio_user.io_fds import DRAFT_ENTRIES, ENTRY, RATIFIED_ENTRIES, Entries
from vfio_user.transfer import DmaAccess, DraftDmaAccess
from vfio_user.version import Capabilities

T = TypeVar("T")


class DraftCommand(IntEnum):
    """The commands of the draft of January 2021 whose numbers mean something else in the ratified text."""

    VM_INTERRUPT = 13
    """The server sends it: an interrupt for which the client has set no eventfd. Its payload is the vector (u32)."""
    DEVICE_RESET = 14
    DIRTY_PAGES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One text of the protocol. The defaults are those of the ratified text."""

    name: str
    reset: Command | DraftCommand = Command.DEVICE_RESET
    vm_interrupt: DraftCommand | None = None
    dirty_pages: DraftCommand | None = None
    missing: frozenset[Command] = frozenset()
    """Ratified commands that the text lacks."""
    dma: type[DmaAccess] = DmaAccess
    """The head of DMA_READ and DMA_WRITE."""
    entries: Entries = RATIFIED_ENTRIES
    """How DEVICE_GET_REGION_IO_FDS lays out its entries."""
    entry: int = ENTRY
    """Bytes of an entry that a server sends: of the ratified text, or libvfio-user's 48."""

    def numbered(self, of: Mapping[Command, T]) -> dict[int, T]:
        """The values of ``of`` by the numbers that the commands have on the wire."""
        return {self._number(command): value for command, value in of.items() if command not in self.missing}

    def within(self, capabilities: Capabilities) -> Capabilities:
        """``capabilities`` without those of commands and entries that the text lacks."""
        if not self.missing:
            return capabilities
        return replace(
            capabilities,
            write_multiple=False,
            twin_socket=False,
            io_fds=None if capabilities.io_fds is None else capabilities.io_fds - {Mechanism.SHADOW},
            named=capabilities.named - {"write_multiple", "twin_socket"},
        )

    def check(self, command: Command) -> None:
        """Raise VfioUserError (ENOTSUP) for a command that the text lacks."""
        if command in self.missing:
            raise VfioUserError(f"{command.name}: the dialect {self.name} has no such command", errno.ENOTSUP)

    def called(self, number: int) -> str:
        """What a command is called in messages to people."""
        for known in (DraftCommand,) if self.missing else ():
            if number in known._value2member_map_:
                return known(number).name
        known_here = number in Command._value2member_map_ and number not in self.missing
        return Command(number).name if known_here else f"command {number}"

    def _number(self, command: Command) -> int:
        return self.reset if command is Command.DEVICE_RESET else command


RATIFIED = Dialect(name="ratified")
DRAFT_2021 = Dialect(
    name="draft-2021",
    reset=DraftCommand.DEVICE_RESET,
    vm_interrupt=DraftCommand.VM_INTERRUPT,
    dirty_pages=DraftCommand.DIRTY_PAGES,
    missing=frozenset(
        (Command.REGION_WRITE_MULTI, Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE)
    ),
    dma=DraftDmaAccess,
    entries=DRAFT_ENTRIES,
)
"""John Levon's draft of 21 January 2021, "ioeventfd/ioregionfd support in vfio-user"."""
DIALECTS = {dialect.name: dialect for dialect in (RATIFIED, DRAFT_2021)}


def dialect(name: str, entry: int = ENTRY) -> Dialect:
    """The dialect of that name, whose server sends entries of ``entry`` bytes."""
    return replace(DIALECTS[name], entry=entry)
