"""The demo on real KVM: a micro guest in our VMM rings the device."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import VmmError
from bellwire_vmm.guests.layout import BATCH, Phase, RingResult, pack_rings, unpack_rings
from bellwire_vmm.machine.processor import Mark
from bellwire_vmm.vmm import Machine, RunResult
from bellwired.demo.ways import Measured, Way, percentile, problem
from vfio_user import Client, Mechanism

GUEST = "bell3"  # the guest's loop runs in ring 3: every kind of KVM runs this natively
MEMORY = 16 << 20
BY_EVENTFD = (Mechanism.IOEVENTFD, Mechanism.IOEVENTFD_DATAMATCH, Mechanism.SHADOW_KERNEL)
OWN = 1  # the mark that ends a stretch is an exit of its own


def measure(
    client: Client,
    ways: Sequence[Way],
    count: int,
    roundtrips: int,
    timeout: float,
    progress: Callable[[str], None],
) -> tuple[list[Measured], int]:
    """Ring each way ``count`` times, then ``roundtrips`` times with an interrupt waited for.

    Also returns the total number of KVM_RUN calls. Raises a VmmError if the guest did not finish.
    """

    def tell(mark: Mark) -> None:
        step = _STEPS.get(mark.value & 0xFF)
        if step is not None:
            progress(f"{ways[(mark.value >> 8) % len(ways)].name}: {step}")

    with Machine(MEMORY, on_mark=tell) as machine:
        device = machine.plug(client)
        machine.load(GUEST, pack_rings([way.ring(count, roundtrips) for way in ways]))
        with _ended_with_its_device(machine, client):
            run = machine.run(timeout)
        if not run.ok:
            raise VmmError(f"the guest did not finish: {_why(run)}")
        results = unpack_rings(machine.memory)
        us = 1000 / machine.tsc_khz
        names = _mechanisms(device, ways)
        measured = [
            _judge(way, name, result, run, index, roundtrips, us)
            for index, (way, name, result) in enumerate(zip(ways, names, results, strict=True))
        ]
        return measured, sum(run.runs)


@contextlib.contextmanager
def _ended_with_its_device(machine: Machine, client: Client) -> Iterator[None]:
    """Stop the machine if the device disconnects: the guest would wait for its interrupts for ever."""
    over = os.eventfd(0, os.EFD_CLOEXEC)

    def watch() -> None:
        waiter = select.poll()
        waiter.register(client.fileno(), 0)  # for its end alone
        waiter.register(over, select.POLLIN)
        if all(fd != over for fd, _ in waiter.poll()):
            machine.stop()

    thread = threading.Thread(target=watch, name="device-watch")
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        thread.join()
        os.close(over)


_STEPS: dict[int, str] = {Phase.RINGS: "ringing", Phase.RAM: "the same loop to RAM", Phase.ROUNDTRIPS: "ring and wait"}
STEPS = len(_STEPS)
"""How often ``progress`` is called for each way."""


def _why(run: RunResult) -> str:
    if run.failure or run.text:
        return run.failure or run.text.strip()
    return "the device has gone" if run.code is None else f"exit code {run.code}"


def _mechanisms(device: ProxyDevice, ways: Sequence[Way]) -> list[Mechanism]:
    found = {(each.bar, each.offset): each.mechanism for each in device.routes()}
    names = [found.get((way.bar.index, way.offset), way.message) for way in ways]
    return [way.message if name is Mechanism.REGION_WRITE else name for way, name in zip(ways, names, strict=True)]


def _judge(
    way: Way, mechanism: Mechanism, result: RingResult, run: RunResult, index: int, roundtrips: int, us: float
) -> Measured:
    rings = _stretch(run, index, Phase.RINGS, Phase.RINGS_END)
    ram = _stretch(run, index, Phase.RAM, Phase.RAM_END)
    ring = percentile(a_ring(result.ring_ticks, result.rung), 50) - percentile(
        a_ring(result.ram_ticks, result.rung), 50
    )
    wrong = problem(
        rung=result.rung,
        received=result.received,
        trips=roundtrips,
        answered=result.answered,
        in_all=result.received_in_all,
        disorder=result.disorder,
    )
    measured = Measured(
        name=way.name,
        mechanism=mechanism,
        rung=result.rung,
        received=result.received,
        vm_exits=rings.runs - OWN,
        mmio_exits=rings.mmio_exits - ram.mmio_exits,
        io_exits=rings.io_exits - ram.io_exits,
        ring_us=max(0.0, ring * us),
        trips_us=tuple(ticks * us for ticks in result.trip_ticks),
        problem=wrong,
    )
    if mechanism in BY_EVENTFD and not wrong and (measured.vm_exits or measured.mmio_exits):
        return replace(measured, problem=f"an ioeventfd must not exit: KVM_RUN returned {measured.vm_exits} times")
    return measured


def a_ring(ticks: Sequence[int], rung: int) -> list[float]:
    """The time of one ring, for each batch. ``rung`` is the total, so the last batch may be shorter."""
    return [took / min(BATCH, rung - at) for took, at in zip(ticks, range(0, rung, BATCH), strict=True)]


def _stretch(run: RunResult, index: int, first: Phase, last: Phase) -> Mark:
    """The counts between two marks, with the exit of the last mark."""
    begin, end = _mark(run, index, first), _mark(run, index, last)
    counts = end.runs - begin.runs, end.mmio_exits - begin.mmio_exits, end.io_exits - begin.io_exits
    return Mark(end.vcpu, end.value, *counts)


def _mark(run: RunResult, index: int, phase: Phase) -> Mark:
    for mark in run.marks:
        if mark.value == index << 8 | phase:
            return mark
    raise VmmError(f"the guest left no mark for {phase.name} of measurement {index}")
