"""Doorbells on real KVM: the cost of a ring for the vCPU, and the latency to the device and to the interrupt.

The guest is the demo's. It runs under Bellwire's VMM with the device in Python and in C, and under a VMM in C.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from bellwire_vmm.device.zones import Zone
from bellwire_vmm.guests.layout import BATCH, Ring, RingResult, pack_rings, unpack_rings
from bellwire_vmm.vmm import Machine
from bellwired.demo import on_kvm
from bellwired.demo.ways import WAYS, percentile
from bench.bells import NotedBell, PolledBell
from bench.processes import ADAPTIVE, NOTED, POLLED, PYTHON, C, cpus, output, pinned, serving
from bench.samples import Results
from vfio_user import Client

COST, HOOK, TRIP = "cost to the vCPU", "ring to hook", "ring to interrupt"
C_VMM = "C, VMM in C"
MEMORY = 16 << 20
TIMEOUT = 120.0

Rings = Mapping[str, Ring]


class Figures(NamedTuple):
    """The figures of one way, in µs: a ring's cost, and the times until the hook and until the interrupt."""

    name: str
    cost: float
    hooks: list[float]
    trips: list[float]


NOT_IN_C = ("ioeventfd values", "shadow ioeventfd")
"""Ways that the device and the VMM in C do not have."""


def rings(count: int, trips: int) -> Rings:
    """The ways to ring the bell by accesses that leave the guest."""
    noted = Ring(bar=0, offset=0, count=count, roundtrips=trips, notes=NotedBell.note_at.offset)
    ways = {
        way.name: replace(way.ring(count, trips), notes=NotedBell.note_at.offset)
        for way in WAYS
        if way.name not in NOT_IN_C
    }
    load, batched = NotedBell.load.offset, NotedBell.batched.offset
    counter, errors = NotedBell.batched_count.offset, NotedBell.batched_errors.offset
    return ways | {
        "REGION_WRITE_MULTI": replace(noted, offset=batched, value=None, flush=True, counter=counter, errors=errors),
        "REGION_READ": replace(noted, offset=load, loads=True, counter=NotedBell.load_count.offset),
    }


def stores(count: int, trips: int) -> Rings:
    """The way that does not leave the guest: a store to an area."""
    return {
        "memory that is polled": Ring(
            bar=PolledBell.shared.index,
            offset=PolledBell.mapped.offset,
            count=count,
            roundtrips=trips,
            value=None,
            counter=PolledBell.mapped_count.offset,
            notes=NotedBell.note_at.offset,
            look=PolledBell.look.offset,
        )
    }


def measure(results: Results, *, rounds: int, count: int, trips: int) -> None:
    """Measure every way: ``count`` rings, ``trips`` round trips. vCPU and device get a CPU each, if there are two."""
    available = cpus()
    vcpu, device = available[0], available[-1]
    subjects = [PYTHON, *([ADAPTIVE] if vcpu != device else []), C, C_VMM]
    kinds = {NOTED: rings(count, trips)}
    if vcpu != device:
        kinds[POLLED] = stores(count, trips)
    for number in range(rounds):
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            for kind, ways in kinds.items():
                if (subject, kind) == (ADAPTIVE, POLLED):
                    continue  # it polls as it is
                with serving(C if subject == C_VMM else subject, device, kind) as served:
                    run = under_c if subject == C_VMM else under_ours
                    for found in run(served.sock, vcpu, ways):
                        results.add(COST, found.name, subject, "µs", [found.cost])
                        results.add(HOOK, found.name, subject, "µs", found.hooks)
                        results.add(TRIP, found.name, subject, "µs", found.trips)


def under_ours(sock: socket.socket, vcpu: int, ways: Rings) -> Iterator[Figures]:
    """The figures of the guest under Bellwire's VMM."""
    zones = [Zone(0, NotedBell.batched.offset, 4)] if "REGION_WRITE_MULTI" in ways else []
    with pinned(vcpu), Client(sock) as client, Machine(MEMORY) as machine:
        machine.plug(client, coalesced=zones)
        machine.load(on_kvm.GUEST, pack_rings(list(ways.values())))
        run = machine.run(TIMEOUT)
        if not run.ok:
            raise AssertionError(f"the guest did not finish: {run.failure or run.text}")
        yield from figures(machine, ways)


def under_c(sock: socket.socket, vcpu: int, ways: Rings) -> Iterator[Figures]:
    """The same under the VMM in C. Bellwire's VMM prepares guest memory and the vCPU's first registers for it."""
    with Machine(MEMORY) as machine:
        machine.load(on_kvm.GUEST, pack_rings(list(ways.values())))
        cpu = machine.processors[0].vcpu
        state = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            os.write(state, bytes(cpu.get_sregs()) + bytes(cpu.get_regs()) + cpu.get_cpuid2().pack())
            fds = sock.fileno(), machine.memory.share(), state
            output("vmm", vcpu, *map(str, fds), fds=fds)
        finally:
            os.close(state)
        yield from figures(machine, ways)


def figures(machine: Machine, ways: Rings) -> Iterator[Figures]:
    """The results in guest memory. Raises an AssertionError if a ring has not arrived."""
    us = 1000 / machine.tsc_khz
    for (name, ring), result in zip(ways.items(), unpack_rings(machine.memory), strict=True):
        _check(name, ring, result)
        cost = percentile(result.ring_ticks, 50) - percentile(result.ram_ticks, 50)
        hooks = [ticks * us for ticks in result.note_ticks]
        yield Figures(name, cost * us / BATCH, hooks, [ticks * us for ticks in result.trip_ticks])


def _check(name: str, ring: Ring, result: RingResult) -> None:
    in_all = ring.count + 2 * ring.roundtrips
    if (result.received, result.received_in_all, result.disorder) != (ring.count, in_all, 0):
        raise AssertionError(f"{name}: {in_all} rung, {ring.count} at first: {result[:5]}")
