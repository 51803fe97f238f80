"""Interrupts of completion queues by MSI-X, MSI or INTx, with coalescing (§7.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bellwire import Timer
from bellwire.bundled.nvme.features import FeatureId, Features
from bellwire.bundled.nvme.queues import CompletionQueue
from bellwire.bundled.nvme.registers import Registers

COALESCING_UNIT = 100e-6  # seconds
_COALESCING = int(FeatureId.COALESCING)


class Interrupts:
    """Interrupts the host for completions. With MSI-X each queue has its own vector. MSI and INTx have only one."""

    def __init__(self, device: Registers, features: Features, queues: Sequence[CompletionQueue]) -> None:
        self._device = device
        self._irq = device.irq
        self._triggers = [device.irq[number].trigger for number in range(len(device.irq))]
        self._features, self._words = features, features.words
        self._queues = queues
        self._held: dict[int, int] = {}
        self._timers: dict[int, Timer] = {}

    def reset(self) -> None:
        """Drop interrupts that are held back."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._held.clear()

    def tell_again(self) -> None:
        """Interrupt for all queues, after a restore: interrupts may have been held back. An extra one is harmless."""
        for queue in self._queues:
            if self._unread([queue]):
                self._raise(queue.vector)

    def posted(self, queue: CompletionQueue, count: int) -> None:
        """``queue`` has ``count`` new completions."""
        if not queue.interrupts:
            return
        vector, setting = queue.vector, self._words[_COALESCING]
        if setting >> 8 and queue.qid and self._features.coalesces(vector):
            self._coalesce(vector, count, setting)
        elif self._irq.enabled:
            self._triggers[vector]()
        else:
            self._raise(vector)

    def _coalesce(self, vector: int, count: int, setting: int) -> None:
        """Hold an interrupt back until the aggregation threshold or the aggregation time is reached (§5.21.1.8)."""
        held = self._held.get(vector, 0) + count
        if held > setting & 0xFF:
            self._release(vector)
            return
        self._held[vector] = held
        if vector not in self._timers:
            self._timers[vector] = self._device.after((setting >> 8) * COALESCING_UNIT, self._release, vector)

    def _release(self, vector: int) -> None:
        self._held.pop(vector, None)
        timer = self._timers.pop(vector, None)
        if timer is not None:
            timer.cancel()
        self._raise(vector)

    def _raise(self, vector: int) -> None:
        device, irq = self._device, self._irq
        if irq.enabled:
            irq[vector].trigger()
        elif device.msi.enabled:
            if not device.intms & 1:
                device.msi[0].trigger()
        else:
            self.level()

    @property
    def level_matters(self) -> bool:
        """Whether the host uses INTx, so that the level of the line matters."""
        return not (self._irq.enabled or self._device.msi.enabled)

    def level(self) -> None:
        """Set the line: high while an unmasked queue has completions that the host has not taken (§7.5.1)."""
        device = self._device
        wanted = self.level_matters and not device.intms & 1 and self._unread(self._queues)
        if wanted != device.line.asserted:
            if wanted:
                device.line.high()
            else:
                device.line.low()

    def unmasked(self) -> None:
        """INTMC was written: interrupt for completions that came while the queue was masked."""
        if self._device.msi.enabled and not self._device.irq.enabled and self._unread(self._queues):
            self._raise(0)
        self.level()

    @staticmethod
    def _unread(queues: Iterable[CompletionQueue]) -> bool:
        return any(queue.size and queue.interrupts and queue.head != queue.tail for queue in queues)
