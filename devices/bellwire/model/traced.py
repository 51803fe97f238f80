"""A device that tells all that it does, at debug level: registers, rings, hooks, DMA and interrupts.

Whether one does is decided when it is made, by its logger's level then: the others are built without any of this, so
that nothing asks at each access whether it is to be logged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.model.core import Core
from bellwire.model.counted import CountedDma
from bellwire.model.labels import Labels
from bellwire.model.signals import Signals
from vfio_user import IrqIndex, Reader, Writer

if TYPE_CHECKING:
    from bellwire.device import PciDevice


class TracedSignals(Signals):
    """Interrupts, each told."""

    def trigger(self, index: IrqIndex, vector: int) -> None:
        """Sent, or left pending."""
        super().trigger(index, vector)
        late = index is IrqIndex.MSIX and self.is_pending(vector)
        word = "is left pending: the guest has it masked, or has not asked for it" if late else "is sent"
        self._core.device.log.debug("%s %d %s", index.name, vector, word)

    def drive(self, asserted: bool) -> None:
        """Raised or lowered."""
        self._core.device.log.debug("INTx goes %s", "high" if asserted else "low")
        super().drive(asserted)


class TracedDma(CountedDma):
    """DMA, each told."""

    __slots__ = ()

    def read(self, address: int, size: int) -> bytes:
        """Copied out of guest memory."""
        self._core.device.log.debug("DMA read of %d bytes at %#x", size, address)
        return super().read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copied into guest memory."""
        self._core.device.log.debug("DMA write of %d bytes at %#x", memoryview(data).nbytes, address)
        super().write(address, data)

    def map(self, address: int, size: int, *, write: bool = False) -> list[memoryview]:
        """Touched in place."""
        self._core.device.log.debug(
            "DMA of %d bytes at %#x, to be %s in place", size, address, "written" if write else "read"
        )
        return super().map(address, size, write=write)


class TracedCore(Core):
    """The calls into a device's hooks, each told, and what led to them."""

    signals_kind = TracedSignals
    dma_kind = TracedDma

    def __init__(self, device: PciDevice, *arguments: Any) -> None:
        self._tell = device.log.debug
        super().__init__(device, *arguments)
        self._labels = Labels(self.layout)

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """A hook, a timer's callback, or what waits for a descriptor or for work."""
        name = getattr(hook, "__name__", repr(hook))
        self._tell("%s(%s) begins", name, ", ".join(map(_short, arguments)))
        begun = time.monotonic()
        try:
            result = super().call(hook, *arguments)
        except BaseException as error:
            self._tell("%s raises %r after %.2f ms", name, error, 1e3 * (time.monotonic() - begun))
            raise
        gives = "" if result is None else f" and gives {_short(result)}"
        self._tell("%s ends after %.2f ms%s", name, 1e3 * (time.monotonic() - begun), gives)
        return result

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """No read is so plain that it is not told."""
        return Reader(functools.partial(self.read, index, offset, count))

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """Nor any write."""
        return functools.partial(self.write, index, offset)

    def read(self, index: int, offset: int, count: int) -> bytes:
        """The guest reads."""
        data = super().read(index, offset, count)
        self._tell("guest reads %s", self._value(index, offset, data))
        return data

    def write(self, index: int, offset: int, data: memoryview) -> None:
        """The guest writes."""
        self._tell("guest writes %s", self._value(index, offset, data))
        super().write(index, offset, data)

    def ring(self, bell: Doorbell, count: int) -> None:
        """A doorbell was rung."""
        self._tell("%s is rung%s", bell.name, "" if count == 1 else f" {count} times")
        super().ring(bell, count)

    def ring_value(self, bell: Doorbell, value: int) -> None:
        """A doorbell was rung with a value."""
        self._tell("%s is rung with %#x", bell.name, value & (1 << 8 * bell.size) - 1)
        super().ring_value(bell, value)

    def ring_in_row(self, bell: tuple[IoRegion, int], count: int) -> None:
        """A doorbell of a row was rung."""
        self._tell("%s+%#x is rung", bell[0].name, bell[1])
        super().ring_in_row(bell, count)

    def reset(self) -> None:
        """The device is reset."""
        self._tell("reset")
        super().reset()

    def _value(self, index: int, offset: int, data: bytes | memoryview) -> str:
        """What lies there, where that is, and the bytes as a number."""
        count = len(data)
        value = int.from_bytes(data, "little")
        name = ", ".join(self._labels.at(index, offset, count))
        shown = f"{value:#0{2 + 2 * count}x}" if count <= 8 else f"{count} bytes"
        register = self._labels.register(index, offset, count)
        meaning = f" ({register.meaning(value)})" if register is not None and register.kind is not None else ""
        where = f"{name} (BAR{index}+{offset:#x})" if index in self.layout.bars else f"{name}+{offset:#x}"
        return f"{where}: {shown}{meaning}"


def _short(value: object) -> str:
    """A number as datasheets print it; anything else in some words."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
