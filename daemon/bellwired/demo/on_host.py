"""The demo without KVM: this process rings the device's fds in a guest's place."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Self

from bellwire.bundled.bell import Bell
from bellwired.demo.ways import Measured, Way, problem
from bellwired.errors import CommandError
from vfio_user import (
    Client,
    IoEventFd,
    IoRegionClient,
    IoRegionFd,
    IrqIndex,
    Mechanism,
    RegionIndex,
    ShadowBell,
    ShadowIoEventFd,
    SubRegion,
)
from vfio_user.io_fds import descriptors

PATIENCE = 5.0  # seconds for an interrupt
STEPS = 2
_COMMAND, _MEMORY_AND_MASTER = 0x04, 0x07
_MSIX_CONTROL, _ENABLE = 2, 0x8000

Rings = Callable[[int], None]


def measure(
    client: Client, ways: Sequence[Way], count: int, roundtrips: int, progress: Callable[[str], None]
) -> list[Measured]:
    """As :func:`bellwired.demo.on_kvm.measure`, with this process as the guest."""
    bars = sorted({way.bar.index for way in ways})
    subs = {(bar, sub.offset): sub for bar in bars for sub in client.io_fds(bar)}
    interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        _enable(client)
        client.trigger_eventfds(IrqIndex.MSIX, 0, [interrupt])
        measured = []
        for way in ways:
            sub = subs.get((way.bar.index, way.offset))
            with _Ringer(client, way, sub) as ringer:
                measured.append(_measure(client, way, ringer, count, roundtrips, interrupt, progress))
        return measured
    finally:
        os.close(interrupt)
        for fd in set().union(*map(descriptors, subs.values())):
            os.close(fd)


class _Ringer:
    """Rings one way from this process. ``mechanism`` says how."""

    def __init__(self, client: Client, way: Way, sub: SubRegion | None) -> None:
        self.mechanism = way.message
        self.ring: Rings = self._message
        self._client = client
        self._way = way
        self._open: IoRegionClient | ShadowBell | None = None
        self._sub = sub
        if isinstance(sub, IoEventFd):
            self.mechanism = Mechanism.IOEVENTFD if sub.datamatch is None else Mechanism.IOEVENTFD_DATAMATCH
            self.ring = lambda _: os.eventfd_write(sub.fd, 1)
        elif isinstance(sub, IoRegionFd):
            self.mechanism = Mechanism.IOREGIONFD_HOST
            self._open = wire = IoRegionClient(sub.fd)
            send = wire.post if sub.posted_writes else wire.write
            self.ring = lambda value: send(sub.user_data, 0, value.to_bytes(4, "little"))
        elif isinstance(sub, ShadowIoEventFd):
            self.mechanism = Mechanism.SHADOW_HOST
            self._open = bell = ShadowBell(sub)
            self.ring = lambda value: bell.ring(value.to_bytes(4, "little"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()

    def _message(self, value: int) -> None:
        way = self._way
        self._client.write(way.bar.index, way.offset, value.to_bytes(4, "little"), posted=not way.bar.io)


def _measure(
    client: Client,
    way: Way,
    ringer: _Ringer,
    count: int,
    roundtrips: int,
    interrupt: int,
    progress: Callable[[str], None],
) -> Measured:
    ring, clock = ringer.ring, time.perf_counter
    _write(client, Bell.irq_on_ring.offset, 0)
    _write(client, Bell.reset_counters.offset, 1)
    progress(f"{way.name}: ringing")
    begin = clock()
    for number in range(1, count + 1):
        ring(number)
    ring_us = (clock() - begin) / max(1, count) * 1e6
    received = _counted(client, way.counter)
    _write(client, Bell.irq_on_ring.offset, 1)
    progress(f"{way.name}: ring and wait")
    trips = []
    for number in range(count + 1, count + roundtrips + 1):
        begin = clock()
        ring(number)
        _await(interrupt, way)
        trips.append((clock() - begin) * 1e6)
    disorder = 0 if way.errors is None else _counted(client, way.errors)
    in_all = _counted(client, way.counter)
    counts = {"rung": count, "received": received, "trips": roundtrips, "answered": len(trips), "in_all": in_all}
    wrong = problem(**counts, disorder=disorder)
    return Measured(way.name, ringer.mechanism, count, received, None, None, None, ring_us, tuple(trips), wrong)


def _enable(client: Client) -> None:
    """Set the device up as a driver does: decoding, bus mastering and MSI-X on."""
    client.write(RegionIndex.CONFIG, _COMMAND, _MEMORY_AND_MASTER.to_bytes(2, "little"))
    config = client.read(RegionIndex.CONFIG, 0, 256)
    at = config[0x34]
    while at and config[at] != 0x11:
        at = config[at + 1]
    control = int.from_bytes(config[at + _MSIX_CONTROL : at + _MSIX_CONTROL + 2], "little") | _ENABLE
    client.write(RegionIndex.CONFIG, at + _MSIX_CONTROL, control.to_bytes(2, "little"))


def _await(interrupt: int, way: Way) -> None:
    waiter = select.poll()
    waiter.register(interrupt, select.POLLIN)
    if not waiter.poll(PATIENCE * 1000):
        raise CommandError(f"{way.name}: no interrupt came within {PATIENCE:g} s of a ring")
    os.eventfd_read(interrupt)


def _write(client: Client, offset: int, value: int) -> None:
    client.write(Bell.control.index, offset, value.to_bytes(4, "little"))


def _counted(client: Client, offset: int) -> int:
    return int.from_bytes(client.read(Bell.control.index, offset, 8), "little")
