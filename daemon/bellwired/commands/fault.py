"""``bellwire fault``: put a running device under scenarios of faults, take them away, or list what there is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bellwire import PciDevice
from bellwire.faults.scenario import Scenario, ScenarioError, find_scenario, for_device, name_of, scenarios
from bellwire.filters.find import Plain, Wanted, of_table
from bellwired.commands import show
from bellwired.commands.completion import DEVICES, SCENARIOS, completed
from bellwired.commands.control_client import Instance, method
from bellwired.commands.filters import put_in
from bellwired.commands.operate import instance
from bellwired.commands.show import Column
from bellwired.errors import CommandError
from bellwired.filtering import made
from bellwired.find import find_device
from bellwired.places import Places
from bellwired.sources import is_path


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command; ``shared`` has the flags of all commands that ask a daemon."""
    parser = commands.add_parser(
        "fault",
        parents=[shared],
        help="let a running device fail, as a scenario says",
        description="Puts a running device under scenarios of faults. Without a scenario it shows the faults that are "
        "in the device, and how often each has struck.",
    )
    completed(parser.add_argument("name", nargs="?", help="the device"), DEVICES)
    what = parser.add_argument(
        "scenario",
        nargs="*",
        metavar="SCENARIO|FILE.toml",
        help="scenarios that come with Bellwire, by name, or your own, by the paths of their files",
    )
    completed(what, SCENARIOS)
    parser.add_argument(
        "--stop", action="store_true", help="take out the faults of these scenarios; without one, all faults"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the scenarios that come with Bellwire; with a device (nvme, ./mine.py), those that it can have",
    )
    parser.set_defaults(command=fault, mistake=parser.error, intermixed="scenario")


def fault(arguments: argparse.Namespace) -> int:
    """``bellwire fault NAME [SCENARIO...] [--stop]``, ``bellwire fault [DEVICE] --list``."""
    if arguments.list:
        if arguments.scenario or arguments.stop:
            arguments.mistake("--list takes no scenario")
        return _list(arguments)
    if not arguments.name:
        arguments.mistake("expected the name of a device, or --list")
    daemon, name = instance(arguments), arguments.name
    if arguments.stop:
        _take_out(daemon, name, [name_of(word) for word in arguments.scenario])
        return 0
    if not arguments.scenario:
        return _show(_faults(method(daemon, "Filters", name=name)["filters"]), in_json=arguments.json)
    _put_in(daemon, name, list(map(_found, arguments.scenario)))
    return 0


def wanted_by(words: Iterable[str], device: type[PciDevice]) -> list[dict[str, Plain]]:
    """The filters of scenarios, as a device's file has them: what ``bellwire run --fault`` puts in.

    A CommandError names the fault that is wrong.
    """
    wanted = list(map(_found, words))
    for scenario in wanted:
        scenario.check(device)
        for where, each in _each(scenario):
            try:
                made(each, device)
            except ValueError as error:
                raise CommandError(f"{where}: {error}") from None
    return [each for scenario in wanted for each in scenario.filters()]


def _each(scenario: Scenario) -> list[tuple[str, Wanted]]:
    """The faults of a scenario as filters, each behind its place."""
    return [
        (f"scenario {scenario.name}, fault {number}", of_table(table))
        for number, table in enumerate(scenario.filters(), 1)
    ]


def _found(word: str) -> Scenario:
    try:
        return find_scenario(word)
    except ScenarioError as error:
        raise CommandError(str(error), error.hint) from None


def _put_in(daemon: Instance, name: str, wanted: Iterable[Scenario]) -> None:
    """Put all faults of these scenarios in, or none."""
    try:
        put_in(daemon, name, [(f"{where}: ", str(each)) for scenario in wanted for where, each in _each(scenario)])
    except CommandError:
        device = method(daemon, "Describe", name=name)["device"]["device"]
        for scenario in () if is_path(device) else wanted:  # a file may have the faults of another device
            scenario.check_name(device)
        raise


def _take_out(daemon: Instance, name: str, names: Sequence[str]) -> None:
    """Take out the faults of the scenarios ``names``; all faults, if there is no name."""
    found = _faults(method(daemon, "Filters", name=name)["filters"])
    present = {each["arguments"]["scenario"] for each in found}
    for wanted in names:
        if wanted not in present:
            there = ", ".join(sorted(present - {""})) or "none"
            raise CommandError(f"{name} is not under scenario {wanted}: it is under {there}")
    if not found:
        raise CommandError(f"there is no fault in {name}")
    for each in found:
        if not names or each["arguments"]["scenario"] in names:
            method(daemon, "RemoveFilter", name=name, label=each["label"])


def _faults(filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those filters that are faults: each has the argument ``scenario``."""
    return [each | {"report": json.loads(each["report"])} for each in filters if "scenario" in each["arguments"]]


def _show(found: list[dict[str, Any]], *, in_json: bool) -> int:
    if in_json:
        show.as_json(found)
        return 0
    rows = [
        (
            show.text(each["label"]),
            show.text(each["arguments"]["scenario"]),
            show.text(str(each["report"].get("struck", "?"))),
            show.text(str(each["report"].get("seen", "?"))),
        )
        for each in found
    ]
    columns = (Column("fault"), Column("scenario"), Column("struck"), Column("of"))
    show.console().print(show.table(columns, rows))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found: Iterable[Scenario] = scenarios().values()
    if arguments.name:
        places = Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "")
        found = for_device(found, find_device(arguments.name, places.plugins))
    if arguments.json:
        show.as_json([_described(each) for each in found])
        return 0
    rows = [
        (show.text(each.name), show.text(", ".join(each.devices) or "every device"), show.text(each.about))
        for each in found
    ]
    show.console().print(show.table((Column("scenario"), Column("for", 1), Column("what happens")), rows))
    return 0


def _described(scenario: Scenario) -> Mapping[str, Any]:
    return {
        "name": scenario.name,
        "about": scenario.about,
        "driver": scenario.driver,
        "devices": list(scenario.devices),
        "faults": [dict(each) for each in scenario.fault],
    }
