"""Samples in rounds, and the ratios of two subjects that were measured in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

QUANTILES = (*range(100), 99.5, 99.9, 100)
"""The percentiles of a distribution that are kept."""

NOTHING = 0.01
"""In any unit, a smaller value is within the cost of measuring itself."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that ``percent`` % of them do not exceed."""
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


class Ratio(NamedTuple):
    """A ratio: the median over the rounds, and the smallest and largest."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(slots=True)
class Series:
    """One operation of one subject, measured in several rounds."""

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
        """The median of the rounds' medians, so one bad round has little effect."""
        return statistics.median(self.medians)

    def over(self, other: Series) -> Ratio | None:
        """The ratio of this to the other, round by round. None if one of them is below the cost of measuring."""
        if min(self.p50, other.p50) < NOTHING:
            return None
        ratios = [mine / its for mine, its in zip(self.medians, other.medians, strict=True) if its > 0]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def to_json(self) -> dict[str, Any]:
        """The figures for JSON, without the samples."""
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
    """The key of a series: the part of the benchmark, the operation, and the subject."""

    part: str
    what: str
    subject: str


class Results:
    """Every series of a run."""

    def __init__(self) -> None:
        self._series: dict[Key, Series] = {}

    def add(self, part: str, what: str, subject: str, unit: str, samples: Sequence[float]) -> None:
        """Add one round's samples."""
        self._series.setdefault(Key(part, what, subject), Series(unit)).rounds.append(list(samples))

    def get(self, part: str, what: str, subject: str) -> Series | None:
        """The series; None if it was not measured."""
        return self._series.get(Key(part, what, subject))

    def ratio(self, part: str, what: str, subject: str, other: str, other_what: str | None = None) -> Ratio | None:
        """The ratio of ``subject`` to ``other``; None if one of them was not measured."""
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
