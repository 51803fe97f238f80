"""The filters that a user may name: those of Bellwire, faults among them, those of a device, and entry points."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bellwire import PciDevice
from bellwire.faults.catalogue import GENERIC
from bellwire.filters import Filter, FilterError, Stack
from bellwire.filters.find import Found, Plain, Wanted, builtin, make, of_device, of_table, parse
from bellwire.serve.blame import put_in
from bellwired.errors import CommandError

GROUP = "bellwire.filters"
"""The group of entry points. What an entry point names is a filter."""
LARGEST_REPORT = 1 << 17
"""Bytes of a filter's report. A device has at most 32 filters, and a message to the daemon 16 MiB."""
LONGEST_ERROR = 500


@dataclass(frozen=True, slots=True)
class Listed:
    """A filter that can be used by name. For an entry point without a usable filter, ``error`` says why."""

    name: str
    source: str
    kind: type[Filter] | None
    error: str = ""


def listed(device: type[PciDevice] | None = None) -> list[Listed]:
    """All filters, those of ``device`` too. If two have one name, the first one is used."""
    found = [Listed(name, "bundled", kind) for name, kind in sorted(builtin().items())]
    found += [Listed(kind.name, "a fault", kind) for kind in GENERIC]
    if device is not None:
        found += [Listed(name, device.name, kind) for name, kind in sorted(_of_device(device).items())]
    for entry in importlib.metadata.entry_points(group=GROUP):
        source = f"entry point {entry.value}"
        try:
            found.append(Listed(entry.name, source, _loaded(entry)))
        except CommandError as error:
            found.append(Listed(entry.name, source, None, str(error)))
    return found


def made(wanted: Wanted, device: type[PciDevice]) -> Filter:
    """Make a filter for ``device``. A FilterError or an OptionError says what is wrong with what is wanted.

    One that is ``strict`` is refused: what it raises is for a test, and would pass as an error of the device.

    An entry point is imported only if it is asked for.
    """
    known: Found = {**_of_device(device), **{kind.name: kind for kind in GENERIC}, **builtin()}
    if wanted.name not in known:
        for entry in importlib.metadata.entry_points(group=GROUP):
            if entry.name == wanted.name:
                known[entry.name] = _loaded(entry)
    each = make(wanted, known)
    if each.strict:
        raise FilterError(f"filter {each.name} is strict, which is for a test's Guest: a worker takes it for a failure")
    return each


def all_made(tables: Iterable[Mapping[str, Plain]], device: type[PciDevice]) -> list[Filter]:
    """Make the filters of a device's file, in order."""
    return [made(of_table(table), device) for table in tables]


def tables(texts: Sequence[str]) -> list[dict[str, Plain]]:
    """What ``--filter`` asks for, as a device's file would have it. A CommandError names the part that is wrong."""
    try:
        return [parse(text).to_dict() for text in texts]
    except FilterError as error:
        raise CommandError(f"--{error}", "bellwire filters lists them with their arguments") from None


class Switches:
    """Puts filters in and takes them out while the device runs. All its methods run on the device's thread.

    ``asked`` are those that the device has from its start. The others in the stack are parts of captures and traces.
    """

    def __init__(self, device: PciDevice, stack: Stack, asked: Iterable[Filter] = ()) -> None:
        self._kind = type(device)
        self._stack = stack
        self._asked = list(asked)

    def do(self, action: str, named: str = "", place: str = "") -> list[dict[str, Any]]:
        """``add`` a filter (``named`` as in ``delay:read=2ms``), ``remove`` one by its label, or only ``list`` them.

        Returns the filters from the guest's side to the device's, each with whether a user has ``asked`` for it.
        """
        if action == "add":
            new = made(parse(named), self._kind)
            put_in(new, self._stack, int(place) if place else None)
            self._asked = [each for _, each in self._stack if each in self._asked or each is new]
        elif action == "remove":
            for label, each in self._stack:
                if label == named and each.kept:
                    raise FilterError(f"filter {label} cannot be taken out: {each.kept}")
            self._stack.remove(named)
        return [self._about(label, each) for label, each in self._stack]

    def _about(self, label: str, each: Filter) -> dict[str, Any]:
        present = {name: each.arguments.get(name, option.default) for name, option in each.arguments_of.items()}
        values = {name: each.arguments_of[name].text(value) for name, value in present.items()}
        given = {name: each.arguments_of[name].text(value) for name, value in each.arguments.items()}
        about = {"label": label, "name": each.name, "given": given, "arguments": values, "report": report(each)}
        return about | {"asked": each in self._asked}


def report(each: Filter) -> dict[str, Any]:
    """What a filter has found. In place of a report that fails, or that cannot be sent, it has an ``error``."""
    try:
        encoded = msgspec.json.encode(each.report())
        if len(encoded) > LARGEST_REPORT:
            raise ValueError(f"a report of {len(encoded):,} bytes, expected at most {LARGEST_REPORT:,}")
        return msgspec.json.decode(encoded, type=dict[str, Any])
    except Exception as error:  # noqa: BLE001 the boundary to the code of a filter
        return {"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR]}


def _of_device(device: type[PciDevice]) -> Found:
    """The filters of a device's module, and the faults that it alone can have."""
    return {**of_device(device), **{kind.name: kind for kind in device.faults}}


def _loaded(entry: importlib.metadata.EntryPoint) -> type[Filter]:
    try:
        kind = entry.load()
    except Exception as error:
        raise CommandError(f"entry point {entry.value}: {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Filter)):
        raise CommandError(f"entry point {entry.value}: not a bellwire.filters.Filter")
    return kind
