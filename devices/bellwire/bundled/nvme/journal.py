"""The journal: commands that threads execute, in the device's state. After a restore they are executed again.

It does no harm to execute a read, a write, a flush or a discard twice, as long as the host has not seen the completion
of the first time. The host sees a completion only after the command has left the journal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bellwire.bundled.nvme.command import COMMAND_SIZE

SLOTS = 256
"""The limit of commands in the journal. Further ones stay in their queues."""
_SLOT = struct.Struct(f"<II{COMMAND_SIZE}s")  # used, submission queue, command
JOURNAL_SIZE = SLOTS * _SLOT.size


class Journal:
    """Slots for commands in ``state``. :meth:`clear` it first."""

    def __init__(self, state: memoryview) -> None:
        self._state = state
        self.free: list[int]
        """The free slots."""

    def note(self, sqid: int, entry: bytes | memoryview) -> int:
        """Add a command. Returns its slot."""
        slot = self.free.pop()
        at = slot * _SLOT.size
        _SLOT.pack_into(self._state, at, 0, sqid, bytes(entry))
        self._state[at] = 1  # last: a process may be killed at any point
        return slot

    def strike(self, slot: int) -> None:
        """Remove the command in ``slot``."""
        self._state[slot * _SLOT.size] = 0
        self.free.append(slot)

    def clear(self) -> None:
        """Remove all commands."""
        for slot in range(SLOTS):
            self._state[slot * _SLOT.size] = 0
        self.free = list(range(SLOTS))

    def restored(self) -> Iterator[tuple[int, bytes]]:
        """The :meth:`entries` of a restored state. Empties the journal."""
        entries = self.entries()
        self.clear()
        yield from entries

    def entries(self) -> list[tuple[int, bytes]]:
        """The submission queue and entry of each command under way."""
        return [(sqid, entry) for used, sqid, entry in _SLOT.iter_unpack(self._state) if used]
