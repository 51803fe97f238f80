"""What the figures should be, as ratios within one run, and whether they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import doorbells, protocol
from bench.processes import PYTHON, C
from bench.samples import Ratio, Results


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a ratio; ``at_least`` turns it round."""

    name: str
    bound: float
    find: Callable[[Results], Ratio | None]
    at_least: bool = False

    def judge(self, results: Results) -> Verdict | None:
        """None: it was not measured in this run."""
        ratio = self.find(results)
        if ratio is None:
            return None
        met = ratio.value >= self.bound if self.at_least else ratio.value <= self.bound
        return Verdict(self, ratio, met)

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what came of it."""

    target: Target
    ratio: Ratio
    met: bool


TARGETS = (
    Target(
        "ring to interrupt by ioeventfd, Python by C",
        1.3,
        lambda results: results.ratio(doorbells.TRIP, "ioeventfd wildcard", PYTHON, C),
    ),
    Target(
        "REGION_READ on one CPU, Python by C",
        1.4,
        lambda results: results.ratio(protocol.PART, "REGION_READ, one CPU", PYTHON, C),
    ),
)


def judge(results: Results) -> list[Verdict]:
    """All that were measured."""
    return [verdict for target in TARGETS if (verdict := target.judge(results)) is not None]
