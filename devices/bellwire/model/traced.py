"""A traced device: it logs registers, rings, hooks, DMA and interrupts at debug level.

The level of the device's logger decides when the device is made. A device without tracing has none of these classes, so
that an access never has to check whether it should be logged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.model.core import Core
from bellwire.model.dma import Dma
from bellwire.model.labels import Labels
from bellwire.model.signals import Signals
from vfio_user import IrqIndex, Reader, Writer

if TYPE_CHECKING:
    from bellwire.device import PciDevice


class TracedSignals(Signals):
    """Interrupts that log each signal."""

    def trigger(self, index: IrqIndex, vector: int) -> None:
        """Trigger a vector, and log whether it was sent or left pending."""
        super().trigger(index, vector)
        late = index is IrqIndex.MSIX and self.is_pending(vector)
        word = "is left pending: the guest has it masked, or has not asked for it" if late else "is sent"
        self._core.device.log.debug("%s %d %s", index.name, vector, word)

    def drive(self, asserted: bool) -> None:
        """Set the INTx level, and log the change."""
        self._core.device.log.debug("INTx goes %s", "high" if asserted else "low")
        super().drive(asserted)


class TracedDma(Dma):
    """DMA that logs each transfer."""

    __slots__ = ()

    def read(self, address: int, size: int) -> bytes:
        """Copy from guest memory, and log it."""
        self._core.device.log.debug("DMA read of %d bytes at %#x", size, address)
        return super().read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy to guest memory, and log it."""
        self._core.device.log.debug("DMA write of %d bytes at %#x", memoryview(data).nbytes, address)
        super().write(address, data)

    def map(self, address: int, size: int, *, write: bool = False) -> list[memoryview]:
        """Map guest memory, and log it."""
        self._core.device.log.debug(
            "DMA of %d bytes at %#x, to be %s in place", size, address, "written" if write else "read"
        )
        return super().map(address, size, write=write)


class TracedCore(Core):
    """A core that logs each call of a hook, and the guest's access or ring that led to it."""

    signals_kind = TracedSignals
    dma_kind = TracedDma

    def __init__(self, device: PciDevice, *arguments: Any) -> None:
        self._tell = device.log.debug
        super().__init__(device, *arguments)
        self._labels = Labels(self.layout)

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """Run and log a hook or a callback: of a timer, a descriptor or background work."""
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
        """A callable that logs each read: there is no fast path here."""
        return Reader(functools.partial(self.read, index, offset, count))

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """A callable that logs each write."""
        return functools.partial(self.write, index, offset)

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Do and log a guest's read."""
        data = super().read(index, offset, count)
        self._tell("guest reads %s", self._value(index, offset, data))
        return data

    def write(self, index: int, offset: int, data: memoryview) -> None:
        """Do and log a guest's write."""
        self._tell("guest writes %s", self._value(index, offset, data))
        super().write(index, offset, data)

    def ring(self, bell: Doorbell, count: int) -> None:
        """Log and handle rings of a doorbell."""
        self._tell("%s is rung%s", bell.name, "" if count == 1 else f" {count} times")
        super().ring(bell, count)

    def ring_value(self, bell: Doorbell, value: int, count: int = 1) -> None:
        """Log and handle rings with a value."""
        times = "" if count == 1 else f" {count} times"
        self._tell("%s is rung with %#x%s", bell.name, value & (1 << 8 * bell.size) - 1, times)
        super().ring_value(bell, value, count)

    def ring_in_row(self, bell: tuple[IoRegion, int], count: int) -> None:
        """Log and handle a ring of a doorbell in a row."""
        self._tell("%s+%#x is rung", bell[0].name, bell[1])
        super().ring_in_row(bell, count)

    def reset(self) -> None:
        """Log a reset, then do it."""
        self._tell("reset")
        super().reset()

    def _value(self, index: int, offset: int, data: bytes | memoryview) -> str:
        """The name of the place, the place, and the bytes as a number."""
        count = len(data)
        value = int.from_bytes(data, "little")
        name = ", ".join(self._labels.at(index, offset, count))
        shown = f"{value:#0{2 + 2 * count}x}" if count <= 8 else f"{count} bytes"
        register = self._labels.register(index, offset, count)
        meaning = f" ({register.meaning(value)})" if register is not None and register.kind is not None else ""
        where = f"{name} (BAR{index}+{offset:#x})" if index in self.layout.bars else f"{name}+{offset:#x}"
        return f"{where}: {shown}{meaning}"


def _short(value: object) -> str:
    """A number as datasheets print it; any other value shortened."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
