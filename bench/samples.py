"""What was measured: samples in rounds, and how two things that took turns compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

QUANTILES = (*range(100), 99.5, 99.9, 100)
"""What of a distribution is kept, in percent."""

NOTHING = 0.01
"""In any unit, what is less than this lies within what measuring itself takes."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that ``percent`` % of them do not exceed."""
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


class Ratio(NamedTuple):
    """How many times as much: the median over the rounds, and the smallest and largest of them."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(slots=True)
class Series:
    """One thing, measured in several rounds."""

    unit: str
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [statistics.median(samples) for samples in self.rounds]

    def quantile(self, percent: float) -> float:
        """Over all rounds."""
        return percentile([sample for samples in self.rounds for sample in samples], percent)

    @property
    def p50(self) -> float:
        """The median of the rounds' medians: a bad round does not count for more."""
        return statistics.median(self.medians)

    def over(self, other: Series) -> Ratio | None:
        """This by that, round by round; None where one of them is too small to be told from nothing."""
        if min(self.p50, other.p50) < NOTHING:
            return None
        ratios = [mine / its for mine, its in zip(self.medians, other.medians, strict=True) if its > 0]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def to_json(self) -> dict[str, Any]:
        """Without the samples themselves, which are many."""
        ordered = sorted(sample for samples in self.rounds for sample in samples)
        quantiles = [ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] for percent in QUANTILES]
        return {
            "unit": self.unit,
            "samples": len(ordered),
            "p50": self.p50,
            "p99": self.quantile(99),
            "medians": self.medians,
            "quantiles": quantiles,
        }


class Key(NamedTuple):
    """What a series is of: a part of the benchmark, what was done, and by whom."""

    part: str
    what: str
    subject: str


class Results:
    """Every series of a run."""

    def __init__(self) -> None:
        self._series: dict[Key, Series] = {}

    def add(self, part: str, what: str, subject: str, unit: str, samples: Sequence[float]) -> None:
        """One round's samples."""
        self._series.setdefault(Key(part, what, subject), Series(unit)).rounds.append(list(samples))

    def get(self, part: str, what: str, subject: str) -> Series | None:
        """None: it was not measured."""
        return self._series.get(Key(part, what, subject))

    def ratio(self, part: str, what: str, subject: str, other: str, other_what: str | None = None) -> Ratio | None:
        """``subject`` by ``other``; None where one of them was not measured."""
        mine, its = self.get(part, what, subject), self.get(part, other_what or what, other)
        return None if mine is None or its is None else mine.over(its)

    def subjects(self, part: str) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(key.subject for key in self._series if key.part == part))

    def whats(self, part: str) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(key.what for key in self._series if key.part == part))

    @property
    def parts(self) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(key.part for key in self._series))

    def __iter__(self) -> Iterator[tuple[Key, Series]]:
        return iter(self._series.items())

    def to_json(self) -> list[dict[str, Any]]:
        """A list of series."""
        return [key._asdict() | series.to_json() for key, series in self]
