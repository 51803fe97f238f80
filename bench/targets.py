"""The targets: bounds on ratios within one run, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import doorbells, protocol, storage
from bench.processes import ADAPTIVE, PYTHON, C
from bench.samples import Ratio, Results


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a ratio; ``at_least`` turns it round, ``within_spread`` lets the rounds' own differences count."""

    name: str
    bound: float
    find: Callable[[Results], Ratio | None]
    at_least: bool = False
    within_spread: bool = False

    def judge(self, results: Results) -> Verdict | None:
        """The ratio; None if it was not measured in this run."""
        ratio = self.find(results)
        if ratio is None:
            return None
        value = ratio.low if self.within_spread else ratio.value
        met = value >= self.bound if self.at_least else value <= self.bound
        return Verdict(self, ratio, met)

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and its result."""

    target: Target
    ratio: Ratio
    met: bool


def _disk(load: str) -> Callable[[Results], Ratio | None]:
    return lambda results: results.ratio(storage.PART, load, storage.NVME, storage.BARE)


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
    Target(
        "cost of an ioeventfd ring, our VMM by the one in C",
        1.0,
        lambda results: results.ratio(doorbells.COST, "ioeventfd wildcard", C, doorbells.C_VMM),
        within_spread=True,
    ),
    Target(
        "ring to interrupt, Python that polls by C that blocks",
        1.0,
        lambda results: results.ratio(doorbells.TRIP, "ioeventfd wildcard", ADAPTIVE, C),
    ),
    Target("nvme by preadv: 4 KiB, page cache", 0.25, _disk("4 KiB random read, depth 32, page cache"), at_least=True),
    Target("nvme by preadv: 4 KiB, O_DIRECT", 0.8, _disk("4 KiB random read, depth 32, O_DIRECT"), at_least=True),
    Target(
        "nvme by preadv: 128 KiB, page cache",
        0.55,
        _disk("128 KiB sequential read, depth 8, page cache"),
        at_least=True,
    ),
    Target(
        "nvme by preadv: 128 KiB, O_DIRECT", 0.9, _disk("128 KiB sequential read, depth 8, O_DIRECT"), at_least=True
    ),
)


def judge(results: Results) -> list[Verdict]:
    """The results of all targets that were measured."""
    return [verdict for target in TARGETS if (verdict := target.judge(results)) is not None]
