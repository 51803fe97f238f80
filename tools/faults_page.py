"""Writes the tables of docs/faults.md: all faults, and all scenarios that come with Bellwire.

``python tools/faults_page.py`` puts them between the page's markers. tests/docs holds that they are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from bellwire.bundled.nvme import Nvme
from bellwire.faults import Fault
from bellwire.faults.catalogue import GENERIC
from bellwire.faults.scenario import Scenario, scenarios
from bellwire.faults.schedule import KEYS
from bellwire.virtio import VirtioDevice

PAGE = Path(__file__).parent.parent / "docs/faults.md"
_MARKED = re.compile(r"^<!-- faults: (\w+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def schedule() -> str:
    """The table of a schedule's parts."""
    rows = [(f"`{name}`", key.type_name, key.help) for name, key in KEYS.items()]
    return _table(("part", "type", "what"), rows)


def faults(kinds: Iterable[type[Fault]]) -> str:
    """The table of these faults."""
    rows = [(f"`{kind.name}`", kind.summary(), _arguments(kind), kind.driver) for kind in kinds]
    return _table(("fault", "what happens", "arguments", "what a good driver does"), rows)


def library(found: Iterable[Scenario]) -> str:
    """The table of these scenarios."""
    rows = [
        (
            f"`{each.name}`",
            each.about,
            ", ".join(dict.fromkeys(f"`{fault['fault']}`" for fault in each.fault)),
            each.driver,
        )
        for each in found
    ]
    return _table(("scenario", "what happens", "faults", "what a good driver does"), rows)


def parts() -> dict[str, str]:
    """The parts of the page, by the names of their markers."""
    found = list(scenarios().values())
    return {
        "schedule": schedule(),
        "generic": faults(GENERIC),
        "nvme": faults(Nvme.faults),
        "virtio": faults(VirtioDevice.faults),
        "scenarios": library(each for each in found if not each.devices),
        "devices": library(each for each in found if each.devices),
    }


def written(page: str) -> str:
    """The page with its parts as they should be."""
    known = parts()
    return _MARKED.sub(lambda found: f"<!-- faults: {found[1]} -->\n{known[found[1]]}<!-- end -->", page)


def _arguments(kind: type[Fault]) -> str:
    own = {name: option for name, option in kind.arguments_of.items() if name not in KEYS and name != "scenario"}
    return "; ".join(f"`{name}={option.text(option.default)}`: {option.help}" for name, option in own.items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    sys.exit()
