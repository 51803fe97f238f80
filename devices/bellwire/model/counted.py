"""DMA that is counted: for ``bellwire run``, which tells at its end what was moved. It costs some 100 ns a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire.model.dma import Dma

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core


class CountedDma(Dma):
    """As :class:`bellwire.model.dma.Dma`."""

    __slots__ = ("_in_place", "_read", "_written")

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._read = self._written = self._in_place = 0

    def read(self, address: int, size: int) -> bytes:
        """Copied out of guest memory."""
        data = super().read(address, size)
        self._read += size
        return data

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copied into guest memory."""
        super().write(address, data)
        self._written += memoryview(data).nbytes

    def map(self, address: int, size: int, *, write: bool = False) -> list[memoryview]:
        """Touched in place: all of a view is taken to be."""
        views = super().map(address, size, write=write)
        self._in_place += size
        return views

    def touched(self, size: int) -> None:
        """Touched in place, in a shared map."""
        self._in_place += size

    @property
    def counts(self) -> dict[str, int]:
        """Bytes so far."""
        return {"dma_read": self._read, "dma_written": self._written, "dma_in_place": self._in_place}


def count_dma(device: PciDevice) -> None:
    """From now on; before ``setup``, in which device code may take hold of it."""
    if not isinstance(device.dma, CountedDma):
        device.core.dma = device.dma = CountedDma(device.core)
