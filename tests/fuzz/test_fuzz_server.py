"""vfio-user messages to a server: bytes, and descriptors of every kind. The server then serves another client."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzz.fuzzing import fuzz
from protocol.attack import Attack
from protocol.test_hostile import survive


def attack(drawn: tuple[int, int]) -> None:
    survive(Attack(*drawn))


_, test_briefly, test_long = fuzz(attack, st.tuples(st.integers(0, (1 << 64) - 1), st.integers(1, 40)))
