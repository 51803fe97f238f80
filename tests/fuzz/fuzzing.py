"""What the fuzz targets share.

A target is a function that feeds one input to a parser of outside bytes. It lets only the errors through that the
parser does not document: any exception is a fault. :func:`fuzz` makes three tests of it. One replays the corpus, in no
time. One tries inputs for a fraction of a second. The long one tries them for as long as ``FUZZ_MINUTES`` says (one).

``corpus/NAME`` has inputs that are worth another try, among them those of faults that were found. Add the input that
a failure prints.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
BRIEFLY = 0.6  # seconds of each target in `make test`
CPU = 10.0  # seconds of this process that one input may cost
MEMORY = 512 << 20  # bytes that a whole run may add to this process
ROUND = 100  # inputs between two looks at the clock
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)

Test = Callable[[], None]


def fuzz(
    attack: Callable[[Any], None],
    inputs: st.SearchStrategy[Any],
    name: str = "",
    *,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Test, Test, Test]:
    """Three tests that feed ``attack``: the corpus ``name`` if the target takes bytes, ``inputs`` shortly, and long.

    ``around`` makes what the attacks of one test share.
    """

    def test_corpus() -> None:
        with bounded_memory(), around():
            for data in corpus(name):
                with bounded():
                    attack(data)

    @pytest.mark.slow
    def test_briefly() -> None:
        with bounded_memory(), around():
            _try(attack, inputs, BRIEFLY)

    @pytest.mark.slow
    @pytest.mark.long
    @pytest.mark.timeout(0)
    def test_long() -> None:
        with bounded_memory(), around():
            _try(attack, inputs, 60 * float(os.environ.get("FUZZ_MINUTES", "1")))

    return test_corpus, test_briefly, test_long


def corpus(name: str) -> list[bytes]:
    """The inputs of earlier faults."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] if name else []


def mutated(seeds: Sequence[bytes], most: int = 1 << 16) -> st.SearchStrategy[bytes]:
    """One of ``seeds`` with a few changes, or any bytes; at most ``most`` of them."""
    change = st.tuples(st.sampled_from(_CHANGES), st.integers(0, 1 << 16), _NUMBERS, st.sampled_from((1, 2, 4, 8)))
    changed = st.builds(_change, st.sampled_from(list(seeds)), st.lists(change, max_size=6), st.sampled_from(seeds))
    return (changed | changed | changed | st.binary(max_size=256)).map(lambda data: data[:most])


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block costs more than ``CPU`` seconds: the parser hangs."""

    def late(*_: object) -> None:
        raise AssertionError(f"one input has cost {CPU:g} s of CPU")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail if the largest memory of this process grows by more than ``MEMORY`` in the block."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY, f"the run has taken {grown >> 20} MiB"


def _try(attack: Callable[[Any], None], inputs: st.SearchStrategy[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    tried, failed = 0, False

    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def some(data: Any) -> None:
        nonlocal tried, failed
        if time.monotonic() >= end and tried and not failed:
            return
        tried += 1
        note(f"input: {data!r}")
        try:
            with bounded():
                attack(data)
        except BaseException:
            failed = True  # what shrinks it is no matter of time
            raise

    while time.monotonic() < end or not tried:
        some()
    print(f"{tried} inputs")


_CHANGES = ("number", "number", "number", "byte", "cut", "drop", "repeat", "splice", "insert")
_NUMBERS = st.sampled_from(INTERESTING) | st.integers(0, 300) | st.integers(0, (1 << 64) - 1)


def _change(seed: bytes, changes: list[tuple[str, int, int, int]], other: bytes) -> bytes:
    data = bytearray(seed)
    for kind, where, number, size in changes:
        at = where % (len(data) + 1)
        word = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
        match kind:
            case "number":
                data[at : at + size] = word
            case "byte":
                data[at : at + 1] = word[:1]
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + number % 64]
            case "repeat":
                data[at:at] = data[at : at + number % 64] * (number % 5)
            case "splice":
                data[at:] = other[number % (len(other) + 1) :]
            case "insert":
                data[at:at] = word
    return bytes(data)
