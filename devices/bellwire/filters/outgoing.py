"""The filtered way of what the device does: interrupts, its own methods, and resets; :mod:`.memory` has its DMA."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from bellwire.filters.arrivals import Passage
from bellwire.filters.chain import Chain
from bellwire.filters.events import Hook, Interrupt, Reset
from bellwire.filters.memory import CopyingHost, FilteredHost, ViewingHost
from vfio_user import IrqIndex

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
        self._changes = self._newest = 0  # of the INTx level: those that began, and the last one that has come
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
        """As :meth:`Signals.drive`. A change that comes when a later one has overtaken it is lost."""
        event = Interrupt(IrqIndex.INTX, 0, 1, asserted)
        self._changes += 1
        change = self._changes

        def act() -> None:
            if change >= self._newest:
                self._newest = change
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
    copier: Host | None = None
    if reads or writes:
        copier = cast("Host", CopyingHost(stack, host, interrupts, reads, writes))
        if not all(each.in_place for each in (*reads.filters(), *writes.filters())):
            return copier
    if copier is not None or stack.viewing:
        return cast("Host", ViewingHost(host, interrupts, copier or host, stack.viewed))
    return cast("Host", FilteredHost(host, interrupts)) if chains("interrupt", outwards=True) else None
