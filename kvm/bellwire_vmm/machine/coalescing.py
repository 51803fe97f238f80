"""Writes that wait: KVM keeps a guest's stores to zones of BARs in a ring, and many go out in one message.

A store to a zone does not exit, so its device gets it only at the next exit of any vCPU. The ring is drained before
that exit is handled, so the order with accesses that exit is kept. An access without an exit (a ring by ioeventfd, a
store to RAM) overtakes the waiting writes.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvm_ioctls import Capability, CoalescedRing, CoalescedWrite, KvmError, Vcpu, Vm
from vfio_user import RegionWrite


class Receiver(Protocol):
    """A device that takes waiting writes."""

    def write_many(self, writes: Sequence[RegionWrite]) -> None:
        """Take writes. The guest does not wait for them."""


class Taker(Protocol):
    """What takes the waiting writes of a zone: they go to region ``index`` of ``peer``, and ``writes`` counts them."""

    writes: int

    @property
    def peer(self) -> Receiver:
        """The device; several takers may share one."""

    @property
    def index(self) -> int:
        """The number of the region that the writes go to."""


class Stretch(NamedTuple):
    """A zone at its present address: ``[start, end)`` belongs to ``taker``, whose BAR is at ``base``."""

    start: int
    end: int
    base: int
    taker: Taker


class Coalescing:
    """The machine's zones, and the ring that its vCPUs share. ``active`` is true while there is any zone.

    A vCPU's thread checks ``active`` after every exit, and drains the ring. A malformed ring raises KvmError. Callers
    hold ``lock`` for changes.
    """

    def __init__(self, vm: Vm, lock: threading.RLock) -> None:
        self.active = False
        self._vm = vm
        self._lock = lock
        self._ring: CoalescedRing | None = None
        self._stretches: list[Stretch] = []
        self._starts: list[int] = []

    def begin(self, vcpu: Vcpu) -> None:
        """Find the ring, if this kernel has one, in the mapping of ``vcpu``, which must outlive all zones."""
        page = self._vm.check_extension(Capability.COALESCED_MMIO)
        if page:
            self._ring = vcpu.coalesced_ring(page)

    @property
    def available(self) -> bool:
        """Whether this kernel has a ring."""
        return self._ring is not None

    def add(self, stretch: Stretch) -> None:
        """Let writes to a range of guest-physical memory wait. Raises KvmError if KVM refuses."""
        self._replace([*self._stretches, stretch])
        try:
            self._vm.register_coalesced_mmio(stretch.start, stretch.end - stretch.start)
        except KvmError:
            self._forget(stretch)
            raise

    def remove(self, stretch: Stretch) -> None:
        """Undo `add`, and deliver the waiting writes."""
        self._vm.unregister_coalesced_mmio(stretch.start, stretch.end - stretch.start)
        self.drain()
        self._forget(stretch)

    def drain(self) -> None:
        """Deliver the waiting writes of all vCPUs. If another thread does so now, wait for it."""
        if self._ring is not None and not self._ring.empty:
            with self._lock:
                self._ring.drain(self._deliver)

    def _deliver(self, writes: list[CoalescedWrite]) -> None:
        batches: dict[Receiver, list[RegionWrite]] = {}
        stretches, starts = self._stretches, self._starts
        for address, data, _ in writes:
            at = bisect_right(starts, address) - 1
            if at < 0 or address + len(data) > stretches[at].end:
                continue  # in no zone: KVM does not do this
            _, _, base, taker = stretches[at]
            taker.writes += 1
            batches.setdefault(taker.peer, []).append(RegionWrite(taker.index, address - base, data))
        for peer, batch in batches.items():
            peer.write_many(batch)

    def _forget(self, stretch: Stretch) -> None:
        self._replace([each for each in self._stretches if each is not stretch])

    def _replace(self, stretches: list[Stretch]) -> None:
        stretches.sort(key=lambda each: each.start)
        self._starts = [each.start for each in stretches]
        self._stretches = stretches
        self.active = bool(stretches)
