"""Doorbells on real KVM: what a ring costs the vCPU, and how long it takes until the guest has its interrupt."""

from __future__ import annotations

from bellwired import on_kvm
from bellwired.ways import WAYS
from bench.processes import PYTHON, C, cpus, pinned, serving
from bench.samples import Results
from vfio_user import Client

COST, TRIP = "cost to the vCPU", "ring to interrupt"
TIMEOUT = 120.0


def measure(results: Results, *, rounds: int, count: int, trips: int) -> None:
    """Every way, by each kind of device under our VMM."""
    available = cpus()
    vcpu, device = available[0], available[-1]
    subjects = [PYTHON, C]
    for number in range(rounds):
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            with serving(subject, device) as sock, pinned(vcpu):
                _under_ours(results, subject, Client(sock), count, trips)


def _under_ours(results: Results, subject: str, client: Client, count: int, trips: int) -> None:
    with client:
        measured, _ = on_kvm.measure(client, WAYS, count, trips, TIMEOUT, lambda _: None)
    for way in measured:
        if way.problem:
            raise AssertionError(f"{way.name}, {subject}: {way.problem}")
        results.add(COST, way.name, subject, "µs", [way.ring_us])
        results.add(TRIP, way.name, subject, "µs", way.trips_us)
