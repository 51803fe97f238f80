"""Doorbells on real KVM: what a ring costs the vCPU, and how long it takes until the guest has its interrupt.

The guest is the demo's. It runs under our VMM with the device in Python and with the one in C, and under a VMM in C.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from bellwire_vmm.guests.layout import BATCH, RingResult, pack_rings, unpack_rings
from bellwire_vmm.machine import Machine
from bellwired import on_kvm
from bellwired.ways import WAYS, percentile
from bench.processes import ADAPTIVE, PYTHON, C, cpus, output, pinned, serving
from bench.samples import Results
from vfio_user import Client

COST, TRIP = "cost to the vCPU", "ring to interrupt"
C_VMM = "C, VMM in C"
MEMORY = 16 << 20
TIMEOUT = 120.0


def measure(results: Results, *, rounds: int, count: int, trips: int) -> None:
    """Every way, ``count`` rings and ``trips`` that are waited for: vCPU and device on a CPU each, if there are two."""
    available = cpus()
    vcpu, device = available[0], available[-1]
    subjects = [PYTHON, *([ADAPTIVE] if vcpu != device else []), C, C_VMM]
    for number in range(rounds):
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            with serving(C if subject == C_VMM else subject, device) as served:
                run = under_c if subject == C_VMM else under_ours
                for name, cost, times in run(served.sock, vcpu, count, trips):
                    results.add(COST, name, subject, "µs", [cost])
                    results.add(TRIP, name, subject, "µs", times)


def under_ours(sock: socket.socket, vcpu: int, count: int, trips: int) -> Iterable[tuple[str, float, Iterable[float]]]:
    """Each way's name, and µs: what a ring costs, and each time until the interrupt."""
    with pinned(vcpu), Client(sock) as client:
        measured, _ = on_kvm.measure(client, WAYS, count, trips, TIMEOUT, lambda _: None)
    for way in measured:
        if way.problem:
            raise AssertionError(f"{way.name}: {way.problem}")
        yield way.name, way.ring_us, way.trips_us


def under_c(sock: socket.socket, vcpu: int, count: int, trips: int) -> Iterable[tuple[str, float, Iterable[float]]]:
    """The same. Our VMM prepares the guest, and lends memory and what its vCPU would start with."""
    with Machine(MEMORY) as machine:
        machine.load(on_kvm.GUEST, pack_rings([way.ring(count, trips) for way in WAYS]))
        cpu = machine.processors[0].vcpu
        state = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            os.write(state, bytes(cpu.get_sregs()) + bytes(cpu.get_regs()) + cpu.get_cpuid2().pack())
            fds = sock.fileno(), machine.memory.fd, state
            output("vmm", vcpu, *map(str, fds), fds=fds)
        finally:
            os.close(state)
        us = 1000 / machine.tsc_khz
        for way, result in zip(WAYS, unpack_rings(machine.memory), strict=True):
            _check(way.name, result, count, trips)
            cost = percentile(result.ring_ticks, 50) - percentile(result.ram_ticks, 50)
            yield way.name, cost * us / BATCH, [ticks * us for ticks in result.trip_ticks]


def _check(name: str, result: RingResult, count: int, trips: int) -> None:
    if (result.received, result.received_in_all, result.disorder) != (count, count + trips, 0):
        raise AssertionError(f"{name}: {count} and {trips} rung: {result[:5]}")
