"""Sixteen bytes on their way."""

from __future__ import annotations

DEPTH = 16


class Fifo:
    """Bytes that wait, kept in the device's state: how many, and then they."""

    def __init__(self, cell: memoryview) -> None:
        self.cell = cell

    def __len__(self) -> int:
        return self.cell[0]

    def __bytes__(self) -> bytes:
        return bytes(self.cell[1 : 1 + len(self)])

    def fill(self, data: bytes) -> None:
        """Have ``data`` in it, and nothing else."""
        self.cell[: 1 + len(data)] = bytes([len(data)]) + data
