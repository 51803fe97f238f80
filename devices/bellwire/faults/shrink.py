"""Shrinks a list of changes to those that matter, by trying parts of it (delta debugging, Zeller 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Change = TypeVar("Change")


def shrink(changes: Sequence[Change], fails: Callable[[list[Change]], bool], tries: int = 100) -> list[Change]:
    """A part of ``changes`` with which ``fails`` is still true, and of which no single change can be left out.

    ``fails`` is called at most ``tries`` times; what has been found by then is returned.
    """
    left, parts = list(changes), 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        smaller: list[Change] | None = None
        for start in range(0, len(left), size):
            if not tries:
                return left
            without = left[:start] + left[start + size :]
            if without:
                tries -= 1
                if fails(without):
                    smaller = without
                    break
        if smaller is not None:
            left, parts = smaller, max(2, parts - 1)
        elif size == 1:
            return left
        else:
            parts = min(len(left), 2 * parts)
    return left
