"""Completion of words that only the program knows: names of devices, kinds, micro guests and options.

shtab writes the scripts for bash, zsh and fish. Where an argument is :func:`completed`, they ask the command itself for
words: ``bellwire __complete KIND WORD...`` prints one candidate a line. The words are
those of the command line so far.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bellwire import BellwireError
from bellwire.declare.option import Option
from bellwired import terminal
from bellwired.places import Places

ASK = "__complete"
DEVICES, KINDS, GUESTS, OPTIONS, LIVE_OPTIONS = "devices", "kinds", "guests", "options", "live_options"
FILTERS, SCENARIOS = "filters", "scenarios"
VALUED = (
    "--config-dir",
    "--runtime-dir",
    "--log-level",
    "--timeout",
    "-o",
    "--fd",
    "--socket-path",
    "--name",
    "--filter",
    "--fault",
)
HARMLESS = re.compile(r"[\w@%+=:,./-]+")
"""A word that a shell takes as it is. bash expands the others when it completes them: ``$(command)`` would run."""
PATIENCE = 2.0  # seconds for a daemon to list its devices: a user waits


def completed(action: argparse.Action, kind: str) -> argparse.Action:
    """Have the shells complete ``action`` with words of a ``kind``."""
    bash = f'compgen -W "$(bellwire {ASK} {kind} "${{COMP_WORDS[@]:1}}" 2>/dev/null)" -- "$1"'
    close = "-S ''" if kind in (OPTIONS, LIVE_OPTIONS, FILTERS) else ""
    zsh = f'compadd {close} -- ${{(f)"$(bellwire {ASK} {kind} ${{words}} 2>/dev/null)"}}'
    if kind == KINDS:
        bash += '; compgen -f -- "$1"'
        zsh += "; _files"
    name = f"_bellwire_{kind}"
    action.complete = {  # type: ignore[attr-defined]
        "bash": name,
        "zsh": name,
        "fish": f"(bellwire {ASK} {kind} (commandline -opc) 2>/dev/null)",
        "preamble": {
            "bash": f"{name}() {{ {bash}; }}",
            "zsh": f"{name}() {{ {zsh} }}",
        },
    }
    return action


def main(words: Sequence[str]) -> int:
    """``bellwire __complete KIND WORD...``. Errors are silent: they would appear in the user's command line."""
    with terminal.guarded():
        return _complete(words)


def _complete(words: Sequence[str]) -> int:
    kind, *line = [*words, ""]
    plain, places = _parse(line)
    try:
        found = KINDS_OF_WORDS[kind](plain, places())
        print(*filter(HARMLESS.fullmatch, found), sep="\n")
    except (BellwireError, OSError, KeyError):
        return 1
    return 0


def _parse(line: Sequence[str]) -> tuple[list[str], Callable[[], Places]]:
    """The words without flags and command names; and the places that the flags name."""
    flags: dict[str, str] = {}
    plain = []
    words = iter(line)
    for word in words:
        if word in VALUED:
            flags[word] = next(words, "")
        elif word.startswith("-"):
            name, _, value = word.partition("=")
            flags[name] = value
        elif word not in ("bellwire", "run", "set", ""):
            plain.append(word)

    def folder(flag: str) -> Path | None:
        return Path(flags[flag]).expanduser() if flags.get(flag) else None

    whose = next((word for word in ("user", "system") if f"--{word}" in flags), "")
    return plain, lambda: Places.of(folder("--config-dir"), folder("--runtime-dir"), whose=whose)


def _devices(_: list[str], places: Places) -> Iterator[str]:
    from bellwired.commands.control_client import all_devices

    return (device["name"] for device in all_devices(_instance(places)))


def _kinds(_: list[str], places: Places) -> Iterator[str]:
    from bellwired.find import names

    return iter(names(places.plugins))


def _guests(_: list[str], __: Places) -> Iterator[str]:
    from bellwire_vmm import guests

    return iter(guests.names())


def _options(plain: list[str], places: Places) -> Iterator[str]:
    from bellwired.find import find_functions

    options = (
        {
            name: option
            for kind in find_functions(plain[0], places.plugins)
            for name, option in kind.layout.options.items()
        }
        if plain
        else {}
    )
    return itertools.chain.from_iterable(map(_values, options.values()))


def _filters(plain: list[str], places: Places) -> Iterator[str]:
    """NAME, and NAME:KEY= for each argument."""
    from bellwired.filtering import listed
    from bellwired.find import find_functions, names

    if plain[:1] == ["filter"]:
        plain = [_device_of(plain[1], places)] if len(plain) > 1 else []
    known = plain and plain[0] in names(places.plugins)
    device = find_functions(plain[0], places.plugins)[0] if known else None
    for each in listed(device):
        yield each.name
        if each.kind is not None:
            yield from (f"{each.name}:{argument}=" for argument in each.kind.arguments_of)


def _scenarios(_: list[str], __: Places) -> Iterator[str]:
    from bellwire.faults.scenario import scenarios

    return iter(scenarios())


def _live_options(plain: list[str], places: Places) -> Iterator[str]:
    from bellwired.find import find_trusted

    if not plain:
        return iter(())
    wanted = _device_of(plain[0], places)
    if not wanted:
        return iter(())
    layout = find_trusted(wanted, places.plugins).layout
    live = (option for option in layout.options.values() if ("set", option) in layout.hooks)
    return itertools.chain.from_iterable(map(_values, live))


def _device_of(name: str, places: Places) -> str:
    """What the device ``name`` is. A daemon chooses no file that is run here: a path counts in configuration alone."""
    from bellwired import settings
    from bellwired.sources import is_path

    configured = settings.load(places).devices.get(name)
    if configured is not None:
        return configured.device
    told: str = _ask(places, "Describe", name=name)["device"]["device"]
    return "" if is_path(told.partition(":")[0]) else told


def _values(option: Option[Any]) -> Iterator[str]:
    """KEY=, and KEY=VALUE for each value, so that a shell stops at the = and does not start the next word."""
    values = option.choices or ((True, False) if isinstance(option.default, bool) else (option.default,))
    for text in ("", *filter(None, map(option.text, values))):
        yield f"{option.name}={text}"


def _instance(places: Places) -> Any:
    """The daemon that a command would ask."""
    from bellwired.commands.control_client import Instance

    return Instance(places, PATIENCE, other=Places.of(whose="system") if places.whose == "user" else None)


def _ask(places: Places, method_name: str, **arguments: str) -> dict[str, Any]:
    from bellwired.commands.control_client import method

    return method(_instance(places), method_name, **arguments)


KINDS_OF_WORDS: dict[str, Callable[[list[str], Places], Iterator[str]]] = {
    DEVICES: _devices,
    KINDS: _kinds,
    GUESTS: _guests,
    OPTIONS: _options,
    LIVE_OPTIONS: _live_options,
    FILTERS: _filters,
    SCENARIOS: _scenarios,
}
