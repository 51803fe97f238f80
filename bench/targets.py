"""The targets: bounds on ratios within one run, and whether a run meets them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench import doorbells, filters, guest, network, protocol, storage
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


def _protocol(operation: str) -> Callable[[Results], Ratio | None]:
    return lambda results: results.ratio(protocol.PART, f"{operation}, one CPU", PYTHON, C)


def _disk(load: str, subject: str) -> Callable[[Results], Ratio | None]:
    return lambda results: results.ratio(storage.PART, load, subject, storage.BARE)


def _network(what: str) -> Callable[[Results], Ratio | None]:
    return lambda results: results.ratio(network.PART, what, PYTHON, network.BARE)


def _disks() -> list[Target]:
    bounds = {
        storage.NVME: {
            "4 KiB random read, depth 1, page cache": 0.15,
            "4 KiB random read, depth 32, page cache": 0.5,
            "4 KiB random read, depth 32, memory": 0.7,
            "128 KiB sequential read, depth 8, page cache": 0.7,
            "4 KiB random read, depth 32, O_DIRECT": 0.8,
            "128 KiB sequential read, depth 8, O_DIRECT": 0.9,
        },
        storage.VIRTIO: {
            "4 KiB random read, depth 1, page cache": 0.1,
            "4 KiB random read, depth 32, page cache": 0.25,
            "4 KiB random write, depth 32, page cache": 0.4,
        },
    }
    return [
        Target(f"{subject} by the bare loop: {load}", bound, _disk(load, subject), at_least=True)
        for subject, loads in bounds.items()
        for load, bound in loads.items()
    ]


def handed(results: Results, what: str) -> Ratio | None:
    """Our device by QEMU's own in a back end's hands, each by the virtio-blk in the same guest; None if not measured.

    The two run in two QEMUs: what the builds make of a figure goes out of the ratio so.
    """
    subjects = guest.OURS, guest.IN_PATCHED, guest.QEMU, guest.IN_STOCK
    found = [results.get(guest.VHOST, what, subject) for subject in subjects]
    rounds = zip(*(series.medians for series in found if series), strict=True)
    if not all(found):
        return None
    ratios = [ours / patched / (theirs / stock) for ours, patched, theirs, stock in rounds]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _in_a_guest(results: Results) -> list[Target]:
    """A target for each load: Bellwire's device, rung by descriptor, beside QEMU's own."""

    def find(part: str, what: str, ours: str, theirs: str) -> Callable[[Results], Ratio | None]:
        return lambda found: found.ratio(part, what, ours, theirs)

    disks = [
        Target(
            f"Linux in the patched QEMU, by QEMU's own device: {what}",
            1.0,
            find(guest.PATCHED, what, guest.BY_DESCRIPTOR, guest.OWN),
            at_least=True,
        )
        for what in results.whats(guest.PATCHED)
    ]
    in_hands = [
        Target(
            f"a vhost-user back end, by QEMU's own device in its hands: {what}",
            0.95,
            lambda found, what=what: handed(found, what),  # type: ignore[misc]
            at_least=True,
        )
        for what in results.whats(guest.VHOST)
    ]
    return [*disks, *in_hands]


TARGETS = (
    Target(
        "ring to interrupt by ioeventfd, Python by C",
        1.2,
        lambda results: results.ratio(doorbells.TRIP, "ioeventfd wildcard", PYTHON, C),
    ),
    Target(
        "ring to interrupt, Python that polls by C that blocks",
        0.7,
        lambda results: results.ratio(doorbells.TRIP, "ioeventfd wildcard", ADAPTIVE, C),
    ),
    Target(
        "cost of an ioeventfd ring, our VMM by the one in C",
        1.0,
        lambda results: results.ratio(doorbells.COST, "ioeventfd wildcard", C, doorbells.C_VMM),
        within_spread=True,
    ),
    Target("REGION_READ on one CPU, Python by C", 1.4, _protocol("REGION_READ")),
    Target("REGION_WRITE on one CPU, Python by C", 1.5, _protocol("REGION_WRITE")),
    Target("REGION_WRITE posted on one CPU, Python by C", 1.8, _protocol("REGION_WRITE posted")),
    Target("DMA_MAP and UNMAP on one CPU, Python by C", 2.0, _protocol("DMA_MAP and UNMAP")),
    Target("SET_IRQS on one CPU, Python by C", 2.0, _protocol("SET_IRQS")),
    Target(
        "REGION_READ, a filter that has left by no filter",
        1.0,
        lambda results: results.ratio(filters.PART, "REGION_READ", filters.LEFT, filters.NONE),
        within_spread=True,
    ),
    *_disks(),
    Target("virtio-net by writev: frames of 64 bytes sent", 0.55, _network("frames of 64 bytes"), at_least=True),
    Target(
        "virtio-net by readv: frames of 64 bytes received", 0.45, _network("frames of 64 bytes received"), at_least=True
    ),
)


def judge(results: Results) -> list[Verdict]:
    """The results of all targets that were measured."""
    targets = (*TARGETS, *_in_a_guest(results))
    return [verdict for target in targets if (verdict := target.judge(results)) is not None]
