"""What filters cost: messages to a device without any, with each, and after one has left. All are in one run."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from bench.processes import PYTHON, TIMED, cpus, serving
from bench.protocol import timed
from bench.samples import Results

PART = "filters"
NONE, LEFT = "no filter", "one that has left"
SUBJECTS = {
    NONE: (),
    LEFT: ("--filter", "left"),
    "count": ("--filter", "count"),
    "trace": ("--filter", "trace"),
    "capture": ("--capture", "{file}"),
    "record": ("--record", "{file}"),
}
"""Words for ``bellwire run``. A file is another one each time."""
OPERATIONS = ("REGION_READ", "REGION_WRITE", "REGION_WRITE posted", "ring to interrupt", "ring to hook")


def measure(results: Results, *, rounds: int, count: int) -> None:
    """Measure each operation with each filter, with client and device on one CPU. The subjects take turns."""
    cpu = cpus()[0]
    for number in range(rounds):
        subjects = list(SUBJECTS)
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            with TemporaryDirectory() as folder:
                words = tuple(word.format(file=f"{folder}/file") for word in SUBJECTS[subject])
                with serving(PYTHON, cpu, TIMED, words=words) as served:
                    found = timed(served.sock, count, cpu)
            for operation in OPERATIONS:
                results.add(PART, operation, subject, "µs", found[operation])
