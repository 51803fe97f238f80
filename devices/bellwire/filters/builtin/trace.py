"""``trace``: a line for each event, decoded, and the last of them in a ring that others read."""

from __future__ import annotations

import logging

from bellwire.errors import GuestError
from bellwire.filters import (
    Argument,
    Client,
    DmaRange,
    DmaRead,
    DmaView,
    DmaWrite,
    Filter,
    Hook,
    Interrupt,
    Read,
    Reset,
    Ring,
    Write,
)
from bellwire.filters.observing.event_ring import MOST_SLOTS, EventRing, RingReader
from bellwire.filters.observing.record import Record
from bellwire.filters.observing.recorder import Recorder
from bellwire.filters.observing.selection import Selection

DUMPED = 20
"""Records that the log gets when device code raises."""
_METHODS = {
    "read": ("after_read",),
    "write": ("before_write",),
    "config": ("after_config_read", "before_config_write"),
    "ring": ("before_ring",),
    "dma": ("after_dma_read", "after_dma_write", "dma_view"),
    "irq": ("after_interrupt",),
    "hook": ("after_hook",),
    "reset": ("before_reset",),
    "map": ("dma_map",),
    "client": ("client",),
}
"""The methods that make records of each kind."""


class Trace(Filter):
    """Keeps a record of each event, decoded: registers by name, flags, DMA, interrupts, hooks and how long they took.

    The last ``keep`` records are in a ring. With ``log`` each one is a line of the device's log, too.
    """

    only = Argument("", help="records to keep, as mmio.status+irq: names, kinds, patterns; without it, all")
    without = Argument("", help="records to leave out, as config+hook")
    rate = Argument(0, least=0, help="the most records a second; 0: all. What is too much is counted")
    keep = Argument(4096, least=16, most=MOST_SLOTS, help="records in the ring, 512 bytes each")
    log = Argument(True, help="log each record as a line")
    copy = Argument(False, help="let the device copy guest memory, so that each DMA is seen; it is slower")
    level = logging.INFO
    """The level of these lines."""

    def start(self) -> None:
        """Make the ring."""
        self.in_place = not self.copy
        layout = self.device.layout
        self._recorder = Recorder(layout)
        self._selection = Selection(self.only, self.without, self._recorder.names())
        for kind, methods in _METHODS.items():
            if not self._selection.wants(kind):
                for name in methods:
                    setattr(self, name, getattr(Filter, name).__get__(self))  # it takes no part in these events
        self._second = self._taken = self._lost = 0
        self.ring = EventRing(self.keep)

    def stop(self) -> None:
        """Close the ring: who reads it keeps a file of their own."""
        self.ring.close()

    def last(self, count: int) -> list[Record]:
        """The last ``count`` records, the latest last."""
        reader = RingReader(self.ring.fd)
        try:
            return [record for _, record in reader.last(count)]
        finally:
            reader.close()

    def after_read(self, read: Read) -> None:
        """A guest has read."""
        self._add(self._recorder.access(read, "read", ""))

    def before_write(self, write: Write) -> None:
        """A guest writes. The record comes before those of what the write sets off."""
        self._add(self._recorder.access(write, "write", ""))

    def after_config_read(self, read: Read) -> None:
        """A guest has read config space."""
        self._add(self._recorder.access(read, "config", "read"))

    def before_config_write(self, write: Write) -> None:
        """A guest writes config space."""
        self._add(self._recorder.access(write, "config", "write"))

    def before_ring(self, ring: Ring) -> None:
        """A guest has rung a doorbell."""
        self._add(self._recorder.ring(ring))

    def after_dma_read(self, read: DmaRead) -> None:
        """The device has read guest memory."""
        self._add(self._recorder.dma(read, "read"))

    def after_dma_write(self, write: DmaWrite) -> None:
        """The device has written guest memory."""
        self._add(self._recorder.dma(write, "write"))

    def dma_view(self, view: DmaView) -> None:
        """The device gets guest memory to use it in place. What it does there is not seen."""
        self._add(self._recorder.view(view))

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device has interrupted."""
        self._add(self._recorder.interrupt(interrupt))

    def before_reset(self, reset: Reset) -> None:
        """The device is reset."""
        self._add(self._recorder.reset(reset))

    def after_hook(self, hook: Hook) -> None:
        """A method of the device has run. If it failed, the log gets what led there."""
        self._add(self._recorder.hook(hook))
        if hook.error is not None and not isinstance(hook.error, GuestError) and not self.log:
            lines = "\n".join(record.line() for record in self.last(DUMPED))
            self.device.core.log.warning(
                ("trace", hook.name), "the last events before %s failed:\n%s", hook.name, lines
            )

    def dma_map(self, range: DmaRange) -> None:
        """The client has mapped or unmapped memory."""
        self._add(self._recorder.map(range))

    def client(self, client: Client) -> None:
        """A client has come or gone."""
        self._add(self._recorder.client(client))

    def report(self) -> dict[str, int]:
        """The number of records so far, and of those that were too many."""
        return {"records": self.ring.latest, "lost": self._lost}

    def _add(self, record: Record) -> None:
        if record not in self._selection:
            return
        if self.rate and not self._may(record.time):
            self._lost += 1
            return
        self._keep(record)

    def _keep(self, record: Record) -> None:
        self.ring.add(record)
        if self.log:
            self.device.log.log(self.level, "%s", record.untimed())

    def _may(self, now: float) -> bool:
        """Whether the rate allows one more record in this second."""
        if int(now) != self._second:
            lost, self._second, self._taken = self._lost, int(now), 0
            if lost:
                self._keep(Record(now, "lost", detail=f"{lost} events so far were more than {self.rate} a second"))
        self._taken += 1
        return self._taken <= self.rate
