"""Commands that threads are at work on, in the device's state: after a restore they are done again.

Doing a read, a write, a flush or a discard twice is the same as doing it once, as long as the host has not been told
of the first time; it is told only when the command leaves the journal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bellwire.bundled.nvme.command import COMMAND_SIZE

SLOTS = 256
"""Commands that may be under way at once; others stay in their queues."""
_SLOT = struct.Struct(f"<II{COMMAND_SIZE}s")  # used, submission queue, command
JOURNAL_SIZE = SLOTS * _SLOT.size


class Journal:
    """Slots in ``state``, and which of them are free."""

    def __init__(self, state: memoryview) -> None:
        self._state = state
        self._free = list(range(SLOTS))

    @property
    def room(self) -> int:
        """Free slots."""
        return len(self._free)

    def note(self, sqid: int, entry: bytes | memoryview) -> int:
        """Write a command down; its slot."""
        slot = self._free.pop()
        _SLOT.pack_into(self._state, slot * _SLOT.size, 1, sqid, bytes(entry))
        return slot

    def strike(self, slot: int) -> None:
        """The command has ended."""
        self._state[slot * _SLOT.size] = 0
        self._free.append(slot)

    def clear(self) -> None:
        """All have ended."""
        for slot in range(SLOTS):
            self._state[slot * _SLOT.size] = 0
        self._free = list(range(SLOTS))

    def restored(self) -> Iterator[tuple[int, bytes]]:
        """Submission queue and entry of what was under way when the state was saved; the journal is empty then."""
        entries = [(sqid, entry) for used, sqid, entry in _SLOT.iter_unpack(self._state) if used]
        self.clear()
        yield from entries
