"""The filtered way of what the device does: interrupts, DMA, its own methods, and resets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from bellwire.errors import GuestError
from bellwire.filters.arrivals import Passage
from bellwire.filters.chain import Chain
from bellwire.filters.events import DmaRead, DmaWrite, Hook, Interrupt, Reset
from vfio_user import DmaFault, IrqIndex, Segment, SharedMap

if TYPE_CHECKING:
    from bellwire.filters.stack import Stack
    from bellwire.model.core import Core
    from bellwire.model.host import Host


class Interrupts:
    """Takes the place of methods of :class:`bellwire.model.signals.Signals`."""

    def __init__(self, stack: Stack, core: Core) -> None:
        self._stack = stack
        self._signals = core.signals
        self._trigger, self._drive, self._resend = core.signals.trigger, core.signals.drive, core.signals.resend
        self._resending = False
        self.heard = False
        """Whether the host has sent the last signal."""

    def methods(self, chain: Chain) -> dict[str, Callable[..., Any]]:
        """What takes the place of the methods of the signals."""
        self._chain = chain
        return {"trigger": self.trigger, "drive": self.drive, "resend": self.resend} if chain else {}

    def trigger(self, index: IrqIndex, vector: int) -> None:
        """As :meth:`Signals.trigger`."""
        vectors = self._signals.msix if index is IrqIndex.MSIX else self._signals.msi
        event = Interrupt(index, vector, len(vectors), None, self._resending)

        def act() -> None:
            self.heard = False
            self._trigger(index, event.vector)
            pending = index is IrqIndex.MSIX and self._signals.is_pending(event.vector)
            event.outcome = "pending" if pending else "sent" if self.heard else "lost"

        self._stack.departures.admit(Passage(self._chain.steps(event, act), 8, self._stack.ended))

    def drive(self, asserted: bool) -> None:
        """As :meth:`Signals.drive`."""
        event = Interrupt(IrqIndex.INTX, 0, 1, asserted)

        def act() -> None:
            self._drive(bool(event.level))
            event.outcome = "sent"

        self._stack.departures.admit(Passage(self._chain.steps(event, act), 8, self._stack.ended))

    def resend(self) -> None:
        """As :meth:`Signals.resend`."""
        self._resending = True
        try:
            self._resend()
        finally:
            self._resending = False


class FilteredHost:
    """A :class:`bellwire.model.host.Host` in front of the real one.

    With filters of DMA it shares no memory, so all DMA is copied by :meth:`dma_read` and :meth:`dma_write`.
    """

    def __init__(self, stack: Stack, host: Host, interrupts: Interrupts, reads: Chain, writes: Chain) -> None:
        self._stack = stack
        self._host = host
        self._interrupts = interrupts
        self._reads = reads
        self._writes = writes
        self.copied = bool(reads) or bool(writes)
        """Whether device code must copy guest memory, so that filters see it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Raise an interrupt, and note whether anybody listens."""
        self._interrupts.heard = self._host.signal(index, vector)
        return self._interrupts.heard

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory; one that can only be copied, with filters of DMA."""
        parts = self._host.segments(address, size, write)
        if not self.copied:
            return parts
        for _ in parts:  # a DmaFault for memory that the guest lacks
            pass
        return (Segment(address, size, None),)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The whole shared map that contains ``address``; none with filters of DMA."""
        return None if self.copied else self._host.shared_map(address, write)

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of these bytes; none with filters of DMA."""
        return None if self.copied else self._host.whole(address, size, write)

    def dma_read(self, address: int, size: int) -> bytes:
        """Copy guest memory, by way of the filters."""
        if not self.copied:
            return self._host.dma_read(address, size)
        event = DmaRead(address, size)

        def act() -> None:
            event.data = self._host.peek(address, size)

        self._reads.run(event, act)
        if event.why:
            raise DmaFault(address, size, event.why)
        return event.data

    def dma_write(self, address: int, data: memoryview) -> None:
        """Write guest memory, by way of the filters."""
        if not self.copied:
            self._host.dma_write(address, data)
            return
        event = DmaWrite(address, bytes(data))

        def act() -> None:
            self._store(address, memoryview(event.data))

        done = self._stack.departures.admit(Passage(self._writes.steps(event, act), event.size, self._late))
        if done and event.why:
            raise DmaFault(address, event.size, event.why)

    def _store(self, address: int, data: memoryview) -> None:
        for part in list(self._host.segments(address, len(data), True)):
            piece = data[part.address - address : part.address - address + part.size]
            if part.view is None:
                self._host.dma_write(part.address, piece)
            else:
                part.view[:] = piece

    def _late(self, error: Exception | None) -> None:
        if isinstance(error, DmaFault):
            error = GuestError(f"a DMA write that a filter has delayed: {error}")
        self._stack.ended(error)


class Methods:
    """Takes the place of the core's ``call`` and ``reset``."""

    def __init__(self, stack: Stack, core: Core) -> None:
        self._stack = stack
        self._call, self._reset = core.call, core.reset

    def methods(self, hooks: Chain, resets: Chain) -> dict[str, Callable[..., Any]]:
        """What takes the place of the core's methods."""
        self._hooks, self._resets = hooks, resets
        found: dict[str, Callable[..., Any]] = {"reset": self.reset}
        if hooks:
            found["call"] = self.call
        return found

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """As :meth:`Core.call`."""
        event = Hook(getattr(hook, "__name__", repr(hook)), arguments, self._stack.depth)
        result = None

        def act() -> None:
            nonlocal result
            begun = time.monotonic()
            self._stack.depth += 1
            try:
                result = self._call(hook, *arguments)
            finally:
                self._stack.depth -= 1
                event.seconds = time.monotonic() - begun

        self._hooks.run(event, act)
        return result

    def reset(self) -> None:
        """As :meth:`Core.reset`. What waits is dropped."""
        event = Reset()

        def act() -> None:
            self._stack.arrivals.clear()
            self._stack.departures.clear()
            self._stack.depth += 1
            try:
                self._reset()
            finally:
                self._stack.depth -= 1

        self._resets.run(event, act)


def in_front(stack: Stack, host: Host, interrupts: Interrupts, chains: Callable[..., Chain]) -> Host | None:
    """The host that the model gets while there are filters of DMA or interrupts; None if it keeps the real one."""
    reads, writes = chains("dma_read", outwards=True), chains("dma_write", outwards=True)
    if not (reads or writes or chains("interrupt", outwards=True)):
        return None
    return cast("Host", FilteredHost(stack, host, interrupts, reads, writes))
