"""Every way in which a guest's write can reach the bell device, and what was measured of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bellwire import Bar
from bellwire.bundled.bell import FEW, MATCH, Bell
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.register import Register
from bellwire_vmm.guests.layout import Ring, Space
from vfio_user import Mechanism


class Way(NamedTuple):
    """One way: where to write (``width`` 4), and which counters in BAR0 tell what became of it.

    With ``errors``, what is written counts 1, 2, 3, ... and that counter has the surprises; else it is
    ``value``. ``message`` is the way for a client that supports no other mechanism.
    """

    name: str
    message: Mechanism
    bar: Bar
    offset: int
    counter: int
    value: int = 0
    errors: int | None = None

    def ring(self, count: int, roundtrips: int) -> Ring:
        """The parameters for the guest."""
        return Ring(
            bar=self.bar.index,
            offset=self.offset,
            count=count,
            roundtrips=roundtrips,
            value=self.value if self.errors is None else None,
            space=Space.PORTS if self.bar.io else Space.MEMORY,
            counter=self.counter,
            errors=self.errors,
        )


def _way(
    name: str,
    target: Doorbell | IoRegion | Register[int],
    counter: Register[int],
    errors: Register[int] | None = None,
    value: int = 0,
) -> Way:
    bar = target.bar
    assert isinstance(bar, Bar)  # what can be rung lies in a BAR
    message = Mechanism.REGION_WRITE if bar.io else Mechanism.REGION_WRITE_POSTED
    return Way(name, message, bar, target.offset, counter.offset, value, errors.offset if errors else None)


WAYS = (
    _way("ioeventfd wildcard", Bell.wildcard, Bell.wildcard_count),
    _way("ioeventfd datamatch", Bell.datamatch, Bell.datamatch_count, value=MATCH),
    _way("ioeventfd values", Bell.few, Bell.few_count, value=FEW[-1]),
    _way("shadow ioeventfd", Bell.latest, Bell.latest_count, Bell.latest_errors),
    _way("ioregionfd posted", Bell.value, Bell.value_count, Bell.value_errors),
    _way("ioregionfd acknowledged", Bell.region, Bell.acked_count, Bell.acked_errors),
    _way("REGION_WRITE posted", Bell.plain, Bell.plain_count, Bell.plain_errors),
    _way("REGION_WRITE with reply", Bell.pio_plain, Bell.pio_plain_count, Bell.pio_plain_errors),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One way as it went. Times are in µs; exits are None where no VM was there to exit from.

    ``vm_exits`` are returns of KVM_RUN while ``rung`` rings went out; ``mmio_exits`` and ``io_exits`` are the
    kernel's own counts for the same time. ``problem`` is empty if nothing was wrong.
    """

    name: str
    mechanism: Mechanism
    rung: int
    received: int
    vm_exits: int | None
    mmio_exits: int | None
    io_exits: int | None
    ring_us: float
    trips_us: tuple[float, ...]
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """As ``bellwire demo --json`` writes it."""
        return {
            "name": self.name,
            "mechanism": self.mechanism,
            "rung": self.rung,
            "received": self.received,
            "vm_exits": self.vm_exits,
            "mmio_exits": self.mmio_exits,
            "io_exits": self.io_exits,
            "vcpu_us": round(self.ring_us, 3),
            "roundtrip_us": {
                "p50": round(percentile(self.trips_us, 50), 2),
                "p99": round(percentile(self.trips_us, 99), 2),
            },
            "ok": not self.problem,
            "problem": self.problem,
        }


def percentile(samples: Sequence[float], percent: int) -> float:
    """The percentile: the smallest sample that ``percent`` % of them do not exceed; 0 without samples."""
    if not samples:
        return 0.0
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


def problem(*, rung: int, received: int, trips: int, answered: int, in_all: int, disorder: int) -> str:
    """What is wrong with these counts; empty if every ring has arrived once, and values in order."""
    if received != rung:
        return f"{rung} rung, {received} received"
    if answered != trips:
        return f"{trips} rings waited for an interrupt, {answered} got one"
    if in_all != rung + trips:
        return f"{rung + trips} rung in all, {in_all} received"
    if disorder:
        return f"{disorder} values were wrong or out of order"
    return ""
