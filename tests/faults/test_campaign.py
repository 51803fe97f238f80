"""A campaign against a driver that is not there: what it tries, finds, shrinks and writes down."""

from __future__ import annotations

from collections.abc import Sequence

from bellwire import PciDevice
from bellwire.faults import Fault
from bellwire.faults.scenario import parse_scenario
from bellwire.filters import Filter
from bellwire.testing import Guest
from bellwired.guest.campaign import Found, campaign, scenario
from faults.part import Part

OOPS = Found("oops", "BUG: kernel NULL pointer dereference", "BUG: ...\nRIP: ...")


class Bed:
    """A driver that makes a mistake when it reads a count that is too large, in the place of a guest's."""

    kind: type[PciDevice] = Part

    def __init__(self, *, flaky: bool = False) -> None:
        self.runs: list[int] = []
        self._flaky = flaky

    def run(self, faults: Sequence[Fault]) -> Found | None:
        self.runs.append(len(faults))
        filters: list[Filter] = list(faults)
        with Guest(Part, filters=filters) as guest:
            for _ in range(30):
                guest.ring(Part.copy)
                guest.read(Part.status)
                if guest.read(Part.count) > 0x1000_0000 and not (self._flaky and len(self.runs) > 1):
                    return OOPS
        return None


def test_a_campaign_stops_at_the_first_mistake_and_shrinks_what_has_led_to_it() -> None:
    told: list[str] = []
    result = campaign(Bed(), runs=50, seed=1, told=told.append, p=0.05, times=16)
    assert result.found == OOPS
    assert result.again
    assert len(result.all) > len(result.least) == 1
    (change,) = result.least
    assert (change["fault"], change["register"]) == ("changed-read", "count")
    assert change["xor"] > 0x0FFF_FFFF
    assert told[result.runs - 1].startswith(f"seed {result.seed}: {len(result.all)} changes: BUG: kernel NULL")


def test_what_is_written_down_leads_to_the_mistake_again() -> None:
    result = campaign(Bed(), runs=50, seed=1, told=str, p=0.05, times=16)
    written = scenario(result.least, "part", "It reads too much.").to_toml()
    assert Bed().run(parse_scenario(written, "fuzzed-part").faults(Part)) == OOPS


def test_a_mistake_that_does_not_come_again_is_told_with_all_its_changes() -> None:
    result = campaign(Bed(flaky=True), runs=1, seed=campaign_seed(), told=str, p=0.05, times=16)
    assert result.found == OOPS
    assert not result.again
    assert result.least == result.all


def test_a_campaign_that_finds_nothing_says_what_it_has_tried() -> None:
    bed = Bed()
    result = campaign(bed, runs=3, seed=1, told=str, p=0.05, times=16, reads=False)
    assert (result.found, result.runs, bed.runs) == (None, 3, [1, 1, 1])
    assert sum(result.changes.values()) > 0
    assert not any(place.startswith("changed-read") for place in result.changes)


def campaign_seed() -> int:
    """A seed that finds the mistake in its first run."""
    return campaign(Bed(), runs=50, seed=1, told=str, p=0.05, times=16).seed
