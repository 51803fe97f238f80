"""A list of changes is shrunk to those that matter."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.faults.shrink import shrink


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=24), st.data())
def test_what_is_left_are_the_changes_that_it_takes(changes: list[int], data: st.DataObject) -> None:
    places = list(enumerate(changes))
    needed = set(data.draw(st.lists(st.sampled_from(places), min_size=1, unique=True)))
    assert set(shrink(places, lambda some: needed <= set(some), tries=10_000)) == needed


def test_the_order_stays() -> None:
    assert shrink([5, 1, 4, 2, 3], lambda some: 5 in some and 3 in some) == [5, 3]


def test_the_number_of_tries_has_a_limit() -> None:
    tried: list[list[int]] = []
    shrink(list(range(24)), lambda some: bool(tried.append(some)), tries=7)  # type: ignore[func-returns-value]
    assert len(tried) == 7
