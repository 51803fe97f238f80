"""Scenarios: files of faults, and the library that comes with Bellwire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import OptionError, PciDevice
from bellwire.bundled.bell import Bell
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.faults.catalogue import GENERIC, faults_of, make_fault
from bellwire.faults.scenario import (
    Scenario,
    ScenarioError,
    find_scenario,
    for_device,
    load_scenario,
    parse_scenario,
    scenarios,
)
from bellwire.testing import Guest
from bellwired.commands.fault import wanted_by
from bellwired.errors import CommandError
from faults.part import Part

KINDS: tuple[type[PciDevice], ...] = (Part, Nvme, VirtioBlk, VirtioNet, VirtioConsole, VirtioRng)
DEVICES = {each.name: each for each in KINDS}
TEXT = """
about = "Two things go wrong."
driver = "It goes on."

[[fault]]
fault = "lost-irq"
every = 2

[[fault]]
fault = "all-ones"
after = "1s"
"""


def test_a_scenario_makes_its_faults() -> None:
    scenario = parse_scenario(TEXT, "two-things")
    assert [str(fault) for fault in scenario.faults(Part)] == [
        "lost-irq:every=2,scenario=two-things",
        "all-ones:after=1s,scenario=two-things",
    ]


def test_a_guest_runs_under_a_scenario() -> None:
    with Guest(Part, filters=parse_scenario(TEXT, "two-things").faults(Part)) as guest:
        for _ in range(4):
            guest.ring(Part.copy)
        assert guest.interrupts.total() == 2
        guest.advance(1)
        assert guest.read(Part.count) == 0xFFFF_FFFF


def test_a_scenario_that_is_written_is_read_again() -> None:
    scenario = parse_scenario(TEXT, "two-things")
    assert parse_scenario(scenario.to_toml(), "two-things") == scenario


VALUES = st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False) | st.text()


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=50), st.dictionaries(st.from_regex(r"[a-z_-]{1,9}", fullmatch=True), VALUES))
def test_any_scenario_that_is_written_is_read_again(about: str, arguments: dict[str, Any]) -> None:
    fault = {**arguments, "fault": "lost-irq"}
    scenario = Scenario(about=about, driver="It goes on.", devices=(about,), fault=(fault,), name="any")
    assert parse_scenario(scenario.to_toml(), "any") == scenario


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("about =", "abuot ="), "x: Object contains unknown field abuot"),
        (('driver = "It goes on."', ""), "x: Object missing required field driver"),
        (('"It goes on."', "3"), "x: Expected str, got int - at $.driver"),
        (('fault = "lost-irq"', ""), 'x: fault 1 has no name: fault = "lost-irq"'),
        (("[[fault]]", "[fault]"), "x: not TOML"),
        ((TEXT[TEXT.index("[[fault]]") :], '[fault]\nfault = "gone"'), "x: write [[fault]], not [fault]"),
        (("every = 2", "every = [2]"), "x: Expected "),
        (("every = 2", "e.v.e.r.y.e.v.e.r.y.e.v.e.r.y.e.v.e.r.y = 2"), "x: a key is nested too deeply"),
        (("every = 2", "every = '" + "2" * 70_000 + "'"), "x: a scenario has at most 65536 bytes"),
    ],
)
def test_an_error_says_where_the_file_is_wrong(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(TEXT.replace(*change), "x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lost-irq", "lost-irk"), "scenario x, fault 1: part has no fault lost-irk: did you mean lost-irq?"),
        (("every", "evry"), "scenario x, fault 1: filter lost-irq has no option evry: did you mean every?"),
        (('"1s"', '"long"'), "scenario x, fault 2: option after=long: expected a duration"),
        (("lost-irq", "nvme-lost"), "scenario x, fault 1: part has no fault nvme-lost"),
    ],
)
def test_an_error_says_which_fault_is_wrong(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(TEXT.replace(*change), "x").faults(Part)
    assert str(caught.value).startswith(message)


def test_run_says_which_fault_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace("all-ones", "all-one"))
    with pytest.raises(CommandError, match="scenario mine, fault 2: there is no filter 'all-one': did you mean all-on"):
        wanted_by([str(path)], Part)


def test_a_scenario_of_another_device_says_so() -> None:
    with pytest.raises(ScenarioError, match="scenario nvme-fatal: it is for nvme, not for part"):
        find_scenario("nvme-fatal").faults(Part)


def test_a_file_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    assert find_scenario(str(path)).name == "mine"
    with pytest.raises(ScenarioError, match=r"there\.toml: No such file"):
        load_scenario(tmp_path / "not-there.toml")


def test_a_name_that_is_not_there_finds_a_near_one() -> None:
    with pytest.raises(ScenarioError) as caught:
        find_scenario("lost-irk")
    assert (str(caught.value), caught.value.hint) == (
        "there is no scenario lost-irk: did you mean lost-irq?",
        "bellwire fault --list shows them; a file is given by its path",
    )


def test_a_name_cannot_lead_out_of_the_library() -> None:
    with pytest.raises(ScenarioError):
        find_scenario("..%2f..%2fsecret")


def test_the_library_has_at_least_twenty_scenarios_for_every_device() -> None:
    assert len(for_device(scenarios().values(), Bell)) >= 20


@pytest.mark.parametrize("name", scenarios())
def test_each_scenario_of_the_library_can_be_put_into_its_devices(name: str, tmp_path: Path) -> None:
    scenario = scenarios()[name]
    options: dict[str, dict[str, Any]] = {"virtio-net": {"stream": str(tmp_path / "wire"), "listen": True}}
    for device in [DEVICES[each] for each in scenario.devices[:1] or ("part",)]:
        with Guest(device, **options.get(device.name, {})) as guest:
            for fault in scenario.faults(device):
                guest.filters.add(fault)
            guest.advance(10)
            assert len(guest.filters) == len(scenario.fault), guest.filters.failures


def test_each_fault_says_what_it_does_and_what_a_good_driver_does() -> None:
    for fault in (*GENERIC, *Nvme.faults, *VirtioBlk.faults):
        assert fault.summary().endswith((".", ":")) or fault.summary(), fault.name
        assert fault.driver.endswith("."), fault.name
        assert all(option.help for option in fault.arguments_of.values()), fault.name


def test_a_device_has_its_own_faults_besides_the_generic_ones() -> None:
    assert len(faults_of(Bell)) == len(GENERIC)
    assert "nvme-fatal" in faults_of(Nvme)
    assert "virtio-lost-used" in faults_of(VirtioBlk)
    with pytest.raises(OptionError, match="bell has no fault nvme-fatal"):
        make_fault(Bell, "nvme-fatal", {})
