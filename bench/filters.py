"""What filters cost: messages to a device without any, with each, and after one has left. All are in one run."""

from __future__ import annotations

from bench.processes import PYTHON, TIMED, cpus, serving
from bench.protocol import timed
from bench.samples import Results

PART = "filters"
NONE, LEFT = "no filter", "one that has left"
SUBJECTS = {NONE: (), LEFT: ("left",), "count": ("count",), "trace": ("trace",)}
OPERATIONS = ("REGION_READ", "REGION_WRITE", "REGION_WRITE posted", "ring to interrupt", "ring to hook")


def measure(results: Results, *, rounds: int, count: int) -> None:
    """Measure each operation with each filter, with client and device on one CPU. The subjects take turns."""
    cpu = cpus()[0]
    for number in range(rounds):
        subjects = list(SUBJECTS)
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            with serving(PYTHON, cpu, TIMED, filters=SUBJECTS[subject]) as served:
                found = timed(served.sock, count, cpu)
            for operation in OPERATIONS:
                results.add(PART, operation, subject, "µs", found[operation])
