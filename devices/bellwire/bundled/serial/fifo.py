"""A FIFO of sixteen bytes."""

from __future__ import annotations

DEPTH = 16


class Fifo:
    """Bytes that wait, in the device's state: their number, then the bytes."""

    def __init__(self, cell: memoryview) -> None:
        self.cell = cell

    def __len__(self) -> int:
        return self.cell[0]

    def __bytes__(self) -> bytes:
        return bytes(self.cell[1 : 1 + len(self)])

    def fill(self, data: bytes) -> None:
        """Replace the content by ``data``, at most sixteen bytes."""
        self.cell[: 1 + len(data)] = bytes([len(data)]) + data
