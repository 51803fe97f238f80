"""``bellwire filters`` and ``bellwire filter``: what may stand between a guest and a device, and what does."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable
from typing import Any

from bellwired.commands import show
from bellwired.commands.completion import DEVICES, FILTERS, KINDS, completed
from bellwired.commands.control_client import Instance, method
from bellwired.commands.operate import instance
from bellwired.commands.show import Column
from bellwired.errors import CommandError
from bellwired.filtering import Listed, listed
from bellwired.find import find_device
from bellwired.places import Places

ADD, REMOVE, LIST = "add", "remove", "list"


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands; ``shared`` has the flags of all commands that ask a daemon."""
    parser = commands.add_parser(
        "filter",
        parents=[shared],
        help="put filters into a running device, take them out, or list them",
        description="Puts filters between a guest and a running device, takes them out, or lists them with what they "
        "have found. A device keeps its filters when its worker is started again, until its file has others.",
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.add_argument("action", choices=(ADD, REMOVE, LIST))
    what = parser.add_argument(
        "what",
        nargs="*",
        metavar="FILTER",
        help="to add: NAME or NAME:KEY=VALUE,..., as in delay:read=2ms. To remove: its label, as list shows it",
    )
    completed(what, FILTERS)
    parser.add_argument(
        "--place",
        type=_place,
        metavar="N",
        help="where the first added filter stands: 0 is the guest's side (default: behind all others)",
    )
    parser.set_defaults(command=switch, mistake=parser.error)
    parser = commands.add_parser(
        "filters",
        parents=[shared],
        help="list the filters that there are, with their arguments",
        description="Lists the filters that come with Bellwire, those of entry points, and those of a device.",
    )
    kind = parser.add_argument("device", nargs="?", metavar="DEVICE|FILE.py", help="list those of this device, too")
    completed(kind, KINDS)
    parser.set_defaults(command=list_filters)


def switch(arguments: argparse.Namespace) -> int:
    """``bellwire filter NAME add|remove|list``: adds all or none, and removes none if one is not there."""
    if (arguments.action == LIST) == bool(arguments.what):
        arguments.mistake("expected no FILTER to list" if arguments.what else f"expected FILTER to {arguments.action}")
    if arguments.place is not None and arguments.action != ADD:
        arguments.mistake("--place is for add")
    daemon, place = instance(arguments), arguments.place
    if arguments.action == LIST:
        return _show(method(daemon, "Filters", name=arguments.name)["filters"], in_json=arguments.json)
    found: list[dict[str, Any]] = []
    if arguments.action == ADD:
        found = put_in(daemon, arguments.name, [("", each) for each in arguments.what], place)
    else:
        _check_present(daemon, arguments.name, arguments.what)
        for each in arguments.what:
            found = method(daemon, "RemoveFilter", name=arguments.name, label=each)["filters"]
    return _show(found, in_json=True) if arguments.json else 0


def _check_present(daemon: Instance, name: str, labels: Iterable[str]) -> None:
    present = [each["label"] for each in method(daemon, "Filters", name=name)["filters"]]
    for label in labels:
        if label not in present:
            raise CommandError(f"no filter {label} in {name}: it has {', '.join(present) or 'none'}")
        present.remove(label)


def put_in(
    daemon: Instance, name: str, wanted: Iterable[tuple[str, str]], place: int | None = None
) -> list[dict[str, Any]]:
    """Put all of these filters in, or none: if one is refused, those before it are taken out.

    Each comes behind what an error of it begins with. Returns the filters that the device ``name`` has then.
    """
    found: list[dict[str, Any]] = method(daemon, "Filters", name=name)["filters"]
    added: list[str] = []
    try:
        for where, text in wanted:
            before = {each["label"] for each in found}
            try:
                found = method(daemon, "AddFilter", name=name, filter=text, place=place)["filters"]
            except CommandError as error:
                raise CommandError(f"{where}{error}", error.hint) from None
            added += [each["label"] for each in found if each["label"] not in before]
            place = None if place is None else place + 1
    except CommandError:
        for label in added:
            with contextlib.suppress(CommandError):  # it has left by itself, or the device has ended
                method(daemon, "RemoveFilter", name=name, label=label)
        raise
    return found


def list_filters(arguments: argparse.Namespace) -> int:
    """``bellwire filters``."""
    places = Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "")
    found = listed(find_device(arguments.device, places.plugins) if arguments.device else None)
    if arguments.json:
        show.as_json(list(map(_described, found)))
        return 0
    show.console().print(show.table((Column("filter"), Column("from", 1), Column("what it does")), list(_rows(found))))
    return 0


def _rows(found: Iterable[Listed]) -> Iterable[tuple[str, str, str]]:
    """A row for each filter, and one for each of its arguments."""
    for each in found:
        if each.kind is None:
            yield show.text(each.name), show.text(each.source), f"[red]{show.text(each.error)}[/red]"
            continue
        yield show.text(each.name), show.text(each.source), show.text(each.kind.summary())
        for name, option in each.kind.arguments_of.items():
            bounds = f" ({option.allowed})" if option.allowed else ""
            default = option.text(option.default) or "nothing"
            yield f"  {show.text(name)}=", "", show.text(f"{option.type_name}{bounds}, {default}: {option.help}")


def _described(each: Listed) -> dict[str, Any]:
    about: dict[str, Any] = {"name": each.name, "source": each.source, "error": each.error}
    if each.kind is None:
        return about
    arguments = {
        name: {
            "type": option.type_name,
            "default": option.text(option.default),
            "allowed": option.allowed,
            "help": option.help,
        }
        for name, option in each.kind.arguments_of.items()
    }
    return about | {"description": each.kind.summary(), "arguments": arguments}


def _show(found: list[dict[str, Any]], *, in_json: bool) -> int:
    reports = [json.loads(each["report"]) for each in found]
    if in_json:
        show.as_json([each | {"report": report} for each, report in zip(found, reports, strict=True)])
        return 0
    rows = [
        (show.text(each["label"]), show.text(_given(each["arguments"])), show.text(_given(report)))
        for each, report in zip(found, reports, strict=True)
    ]
    show.console().print(show.table((Column("filter"), Column("arguments"), Column("found", 1)), rows))
    return 0


def _given(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _place(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, from 0 on, got {text!r}")
    return int(text)
