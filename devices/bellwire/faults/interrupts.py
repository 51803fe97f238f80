"""Faults of interrupts: lost, late, doubled, without a cause, in a storm, or by another vector."""

from __future__ import annotations

from bellwire.errors import OptionError
from bellwire.faults.fault import Fault
from bellwire.filters import Argument, Duration, Interrupt
from bellwire.model.host import Timer
from vfio_user import IrqIndex

BURST = 64
"""The message-signalled interrupts of a storm that come at once. Pulses of INTx would merge: they come one by one."""
PAUSE = 0.001  # seconds between two bursts, and from a rise of INTx to the pulse that repeats it


def named(interrupt: Interrupt) -> str:
    """The interrupt in words: ``MSIX 3``, or ``INTX high``."""
    if interrupt.level is not None:
        return f"INTx {'high' if interrupt.level else 'low'}"
    return f"{interrupt.kind.name} {interrupt.vector}"


class InterruptFault(Fault):
    """A fault of one vector, or of all."""

    vector = Argument(-1, least=-1, most=2047, help="the vector; -1: all")

    def start(self) -> None:
        """Open the schedule's window. An OptionError if the device has no such vector."""
        check_vector(self, self.vector)
        super().start()

    def concerns(self, interrupt: Interrupt) -> bool:
        """Whether the interrupt is one of those. The fall of INTx is none: it ends an interrupt."""
        return interrupt.level is not False and self.vector in (-1, interrupt.vector)


class LostIrq(InterruptFault, name="lost-irq"):
    """An interrupt is lost."""

    driver = "Looks at the queue itself when a request times out, completes what is done, and goes on without a reset."

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Drop it."""
        if self.concerns(interrupt) and self.strikes("%s is lost", named(interrupt)):
            interrupt.drop()


class LateIrq(InterruptFault, name="late-irq"):
    """An interrupt comes late."""

    delays = True

    driver = "Handles all that it finds done when the interrupt comes, and needs no reset as long as no timeout passes."

    by = Duration(0.02, most=60.0, help="how late")

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Hold it back."""
        if self.concerns(interrupt) and self.strikes("%s is late", named(interrupt)):
            interrupt.delay(self.by)


class DoubleIrq(InterruptFault, name="double-irq"):
    """An interrupt comes twice."""

    driver = "Finds nothing to do the second time, and says so to the kernel (IRQ_NONE) without any harm."

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Let it happen once more."""
        if self.concerns(interrupt) and self.strikes("%s comes twice", named(interrupt)):
            repeat(self, interrupt)


class WrongVector(InterruptFault, name="wrong-vector"):
    """A message-signalled interrupt comes by another vector."""

    driver = "Does not rely on the vector for what has happened; a timeout finds the completion that was not told."

    by = Argument(1, least=1, most=2047, help="how many vectors further; behind the last comes the first")

    def start(self) -> None:
        """Open the schedule's window. An OptionError if the device has no second vector."""
        signals = self.device.core.signals
        if max(len(signals.msix), len(signals.msi)) < 2:
            raise OptionError(f"filter {self.name}: the device has no two vectors of MSI-X or MSI")
        super().start()

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Change the vector, if its kind has several."""
        vectors = self.device.core.signals.msix if interrupt.kind is IrqIndex.MSIX else self.device.core.signals.msi
        if interrupt.level is None and len(vectors) > 1 and self.concerns(interrupt):
            wrong = (interrupt.vector + self.by) % len(vectors)
            if self.strikes("%s comes by vector %d", named(interrupt), wrong):
                interrupt.vector = wrong


class IrqStorm(InterruptFault, name="irq-storm"):
    """An interrupt comes again and again."""

    driver = "Bounds the work of its handler, and leaves the rest to the kernel, which may turn the interrupt off."

    count = Argument(1000, least=1, most=100_000, help="how many come besides the right one")

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Send the first burst with it; timers send the others."""
        if self.concerns(interrupt) and self.strikes("a storm of %s", named(interrupt)):
            self._send(interrupt.kind, interrupt.vector, self.count)

    def _send(self, kind: IrqIndex, vector: int, count: int) -> None:
        self.after(PAUSE, self._burst, kind, vector, count)

    def _burst(self, kind: IrqIndex, vector: int, count: int) -> None:
        burst = 1 if kind is IrqIndex.INTX else min(count, BURST)
        interrupt_again(self, kind, vector, burst)
        if count > burst:
            self._send(kind, vector, count - burst)


class SpuriousIrq(Fault, name="spurious-irq"):
    """Interrupts come without a cause, at even intervals. The schedule chooses which of them."""

    driver = "Checks in the handler whether the device has done anything, and says so to the kernel if not (IRQ_NONE)."

    vector = Argument(0, least=0, most=2047, help="the vector; INTx is 0")
    interval = Duration(0.01, most=3600.0, help="the time from one to the next; at least 0.1ms")

    _timer: Timer | None = None

    def start(self) -> None:
        """Open the schedule's window. An OptionError if the device has no such vector."""
        check_vector(self, self.vector)
        super().start()

    def turned(self, on: bool) -> None:
        """Begin and end with the window of time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if on:
            self._wait()

    def _wait(self) -> None:
        self._timer = self.after(max(self.interval, 1e-4), self._fire)

    def _fire(self) -> None:
        self._wait()
        kind = self._listened_to()
        if kind is not None and self.strikes("%s %d without a cause", kind.name, self.vector):
            interrupt_again(self, kind, self.vector, 1)

    def _listened_to(self) -> IrqIndex | None:
        """By which kind of interrupts the vector reaches the guest now."""
        signals = self.device.core.signals
        for kind, vectors in ((IrqIndex.MSIX, signals.msix), (IrqIndex.MSI, signals.msi)):
            if vectors.enabled:
                return kind if self.vector < len(vectors) else None
        has_line = self.device.layout.intx is not None and signals.config.intx_enabled
        return IrqIndex.INTX if has_line and self.vector == 0 else None


def check_vector(fault: Fault, vector: int) -> None:
    """Raise an OptionError if the device could never fire it. INTx counts as vector 0."""
    signals = fault.device.core.signals
    count = max(len(signals.msix), len(signals.msi), 1)
    if vector >= count:
        raise OptionError(f"filter {fault.name}: vector={vector}: the device has 0 to {count - 1}")


def repeat(fault: Fault, interrupt: Interrupt) -> None:
    """Let an interrupt come twice: INTx by a pulse, when a handler has had some time to end the first."""
    if interrupt.level is None:
        interrupt.again()
    else:
        fault.after(PAUSE, interrupt_again, fault, interrupt.kind, interrupt.vector, 1)


def interrupt_again(fault: Fault, kind: IrqIndex, vector: int, times: int) -> None:
    """Send a vector that the device has not triggered, if the guest listens. No filter sees it.

    INTx rises, and has the level again that the device gives it.
    """
    device = fault.device
    host, signals = device.core.host, device.core.signals
    if host is None:
        return
    if kind is IrqIndex.INTX:
        if signals.config.intx_enabled:
            host.level(True)
            signals.relevel()
    elif device.bus_master:
        for _ in range(times):
            host.signal(kind, vector)
