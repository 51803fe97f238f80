"""The harness itself: it finds faults, hangs and hoards, and says which input it was."""

from __future__ import annotations

import pytest

from fuzz import fuzzing
from fuzz.fuzzing import bounded, bounded_memory, corpus, fuzz, mutated


@pytest.mark.slow
def test_a_fault_behind_a_seed_is_found_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(data: bytes) -> None:
        if data[:3] == b"abc" and data[3:4] > b"\x80":
            raise IndexError(data)

    monkeypatch.setattr(fuzzing, "BRIEFLY", 20.0)  # seconds at most: it is found much sooner
    _, briefly, _ = fuzz(parse, mutated([b"abcdef"]))
    with pytest.raises(IndexError) as found:
        briefly()
    assert any("input: b'abc" in note for note in found.value.__notes__)


def spin() -> None:
    while True:
        pass


def test_an_input_that_costs_too_much_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "CPU", 0.05)
    with pytest.raises(AssertionError, match=r"0.05 s of CPU"), bounded():
        spin()


def test_a_run_that_takes_too_much_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "MEMORY", -1)
    with pytest.raises(AssertionError, match="MiB"), bounded_memory():
        pass


@pytest.mark.parametrize("name", [path.name for path in fuzzing.CORPUS.iterdir()])
def test_each_corpus_has_inputs_and_stays_small(name: str) -> None:
    assert 1 <= len(corpus(name)) <= 50
    assert sum(map(len, corpus(name))) <= 16 << 10
