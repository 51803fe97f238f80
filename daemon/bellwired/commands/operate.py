"""The commands that operate a running daemon, from list to qemu-args."""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bellwired import terminal
from bellwired.commands import attach, complaints, show
from bellwired.commands.completion import DEVICES, LIVE_OPTIONS, completed
from bellwired.commands.control_client import (
    LONGEST,
    Instance,
    NoDaemonError,
    all_devices,
    method,
    speaker,
    stop,
    stream,
)
from bellwired.commands.show import Column
from bellwired.commands.verbs import VERBS
from bellwired.errors import CommandError
from bellwired.places import Places
from vfio_user import RegionIndex

INACTIVE = 3  # the same as that of systemctl status
LOOK_AGAIN = 0.1  # seconds between two checks whether a device runs


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands; ``shared`` has the flags that all of them take."""

    def add(name: str, work: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", parents=[shared]
        )
        parser.set_defaults(command=work)
        return parser

    parser = add("list", list_devices, "list the daemon's devices")
    completed(
        parser.add_argument("name", nargs="*", metavar="PATTERN", help="only devices that match, as in 'vm1-*'"),
        DEVICES,
    )
    parser = add("status", status, "show the state of devices; the exit status is 3 unless all of them run")
    about = "a device, or a pattern as in 'vm1-*'; without any, all devices"
    completed(parser.add_argument("name", nargs="*", help=about), DEVICES)
    for name, verb in VERBS.items():
        parser = add(name, do, verb.about)
        completed(parser.add_argument("name", nargs="*", help="a device, or a pattern as in 'vm1-*'"), DEVICES)
        parser.add_argument("--all", action="store_true", help="all devices of the daemon for which it is possible")
        if name == "restart":
            parser.add_argument("--keep", action="store_true", help="go on with clients and states, as move does")
        parser.set_defaults(verb=name, mistake=parser.error)
    parser = add("set", set_options, "change options of a running device, until it is started again")
    completed(parser.add_argument("name"), DEVICES)
    completed(parser.add_argument("option", nargs="+", metavar="KEY=VALUE"), LIVE_OPTIONS)
    add("reload", reload, "have the daemon read configuration and plugins again")
    parser = add("regs", registers, "show a device's registers, decoded; no read hook is run")
    completed(parser.add_argument("name"), DEVICES)
    completed(add("monitor", monitor, "show what happens, as it happens").add_argument("name", nargs="?"), DEVICES)
    parser = add("logs", logs, "show what a device has logged lately")
    completed(parser.add_argument("name"), DEVICES)
    parser.add_argument("-f", "--follow", action="store_true", help="also print later lines, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=_count, metavar="N", help="print only the last N lines")
    parser = add("qemu-args", qemu_args, "print the QEMU arguments that attach devices")
    completed(parser.add_argument("name", nargs="+"), DEVICES)
    parser.add_argument(
        "--slot",
        type=_slot,
        metavar="N",
        help="attach them as the functions of this slot, from 0 on (0x10, for example)",
    )
    parser.add_argument("--libvirt", action="store_true", help="print XML for a domain of libvirt instead")


def instance(arguments: argparse.Namespace) -> Instance:
    """The daemon that the flags name. Without flags: a user's own or, if that does not run, the system's."""
    places = Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "")
    named = arguments.whose or arguments.config_dir or arguments.runtime_dir
    other = None if named or places.whose != "user" else Places.of(whose="system")
    return Instance(places, arguments.timeout or LONGEST, arguments.wait, other)


def chosen(daemon: Instance, words: Sequence[str]) -> list[str]:
    """The names of the devices that ``words`` select: see :func:`matching`."""
    return matching(words, lambda: [device["name"] for device in all_devices(daemon)])


def matching(words: Sequence[str], known: Callable[[], Sequence[str]]) -> list[str]:
    """The names among ``words``, and all names that match a pattern. A CommandError if a pattern matches none."""
    if not any(map(_is_pattern, words)):
        return list(dict.fromkeys(words))
    there = known()
    found: dict[str, None] = {}
    for word in words:
        names = fnmatch.filter(there, word) if _is_pattern(word) else [word]
        if not names:
            raise CommandError(f"no device matches {word!r}", f"there are: {', '.join(there) or 'none yet'}")
        found |= dict.fromkeys(names)
    return list(found)


def try_each(names: Sequence[str], work: Callable[[str], object], in_json: bool) -> int:
    """Call ``work(name)`` for each name, also after a failure of another. Returns the exit status."""
    failed = {}
    for name in names:
        try:
            work(name)
        except CommandError as error:
            failed[name] = error
    if in_json:
        show.as_json({name: str(failed.get(name, "")) for name in names})
    complaints.errors(failed.values(), in_json=in_json)
    return 1 if failed else 0


def list_devices(arguments: argparse.Namespace) -> int:
    """``bellwire list [PATTERN...]``."""
    daemon = instance(arguments)
    devices = all_devices(daemon, statistics=arguments.json)
    if arguments.name:
        names = set(chosen(daemon, arguments.name))
        devices = [device for device in devices if device["name"] in names]
    if arguments.json:
        show.as_json(devices)
        return 0
    columns = Column("name"), Column("device", 2), Column("state"), Column("for", 3), Column("client", 1)
    numbers = Column("memory", 5, right=True), Column("restarts", 4, right=True)
    troubled = [Column("trouble")] if any(each["troubles"] for each in devices) else []
    rows = [
        (
            show.text(each["name"]),
            show.text(each["device"] or "-"),
            show.state(each["state"]),
            show.ago(each["since"]),
            "yes" if each["connected"] else "-",
            show.size(each["memory"]),
            str(each["restarts"]),
            *([show.text(", ".join(each["troubles"]) or "-")] if troubled else []),
        )
        for each in devices
    ]
    nothing = "The daemon has no devices: put a file into devices.d (bellwire new)."
    show.console().print(show.table([*columns, *numbers, *troubled], rows) if devices else nothing)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """``bellwire status [NAME|PATTERN...]``. In JSON, one name gives an object, everything else a list."""
    daemon = instance(arguments)
    troubles = [] if arguments.name else _about(daemon, in_json=arguments.json)
    names = chosen(daemon, arguments.name or ["*"])
    deadline = time.monotonic() + (daemon.timeout if daemon.wait else 0)
    devices: list[dict[str, Any]] = []
    errors: list[CommandError] = []
    for name in names:
        try:
            devices.append(_described(daemon, name, deadline))
        except CommandError as error:
            errors.append(error)
    if errors and not devices:
        complaints.errors(errors, in_json=arguments.json)
        return 1
    if arguments.json:
        show.as_json(devices[0] if arguments.name == names and len(names) == 1 else devices)
    else:
        _print(devices)
    complaints.errors([*troubles, *errors], in_json=arguments.json)
    if errors:
        return 1
    return 0 if all(device["state"] == "running" for device in devices) else INACTIVE


def _about(daemon: Instance, *, in_json: bool) -> list[CommandError]:
    """Print which daemon is asked. Returns what does not work of it."""
    try:
        about = method(daemon, "About")["daemon"]
    except NoDaemonError:  # all devices run in the foreground, or there are none
        return []
    control, who = speaker(daemon)
    if not in_json:
        told = f"{who} ({about['version']}, process {about['pid']}) at {control}"
        print(f"{'Daemon':>11}: {terminal.line(told)}")
        print(f"{'':>11}  {terminal.line(about['summary'])}\n")
    return [CommandError(f"{part}: {trouble}") for part, trouble in about["troubles"].items()]


def _described(daemon: Instance, name: str, deadline: float) -> dict[str, Any]:
    """Wait until a device runs, or will not run by itself, or until the ``deadline``. Returns its description."""
    while True:
        device: dict[str, Any] = method(daemon, "Describe", name=name)["device"]
        if device["state"] in ("running", "failed", "disabled") or time.monotonic() > deadline:
            return device
        time.sleep(LOOK_AGAIN)


def _print(devices: Sequence[dict[str, Any]]) -> None:
    out = show.console()
    for number, device in enumerate(devices):
        if number:
            out.print()
        for label, value in _facts(device):
            out.print(f"{label:>11}: {value}")
        if device["recent"]:
            out.print()
        for note in device["recent"]:
            out.print(f"{show.clock(note['time'])} {show.text(note['text'])}")


def do(arguments: argparse.Namespace) -> int:
    """``bellwire start|stop|restart|move|reset|disconnect NAME...``. If one device fails, the others still go on."""
    keeps = arguments.verb == "restart" and arguments.keep
    daemon, verb = instance(arguments), VERBS["move" if keeps else arguments.verb]
    if bool(arguments.name) == arguments.all:
        arguments.mistake("expected names of devices, or --all")
    if arguments.all:
        names = [
            device["name"] for device in method(daemon, "List")["devices"] if device["device"] and verb.fits(device)
        ]
    else:
        names = chosen(daemon, arguments.name)

    def work(name: str) -> None:
        if verb.method == "Stop":
            stop(daemon, name)
        else:
            method(daemon, verb.method, name=name)

    return try_each(names, work, arguments.json)


def set_options(arguments: argparse.Namespace) -> int:
    """``bellwire set NAME KEY=VALUE...``: in that order, up to the first that fails."""
    for word in arguments.option:
        key, equals, value = word.partition("=")
        if not equals:
            raise CommandError(f"{word}: expected KEY=VALUE")
        method(instance(arguments), "Set", name=arguments.name, option=key, value=value)
    if arguments.json:
        show.as_json({"name": arguments.name, "options": arguments.option})
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """``bellwire reload``."""
    outcome = method(instance(arguments), "Reload")["outcome"]
    if arguments.json:
        show.as_json(outcome)
    else:
        for word in ("started", "restarted", "stopped"):
            if outcome[word]:
                print(terminal.line(f"{word}: {', '.join(outcome[word])}"))
        if not any(outcome[word] for word in ("started", "restarted", "stopped", "failed")):
            print("nothing has changed")
    complaints.errors(map(CommandError, outcome["failed"].values()), in_json=arguments.json)
    return 1 if outcome["failed"] else 0


_REGIONS = {int(RegionIndex.CONFIG): "config"}


def registers(arguments: argparse.Namespace) -> int:
    """``bellwire regs NAME``."""
    found = method(instance(arguments), "Registers", name=arguments.name)["registers"]
    if arguments.json:
        show.as_json(found)
        return 0
    columns = Column("register"), Column("where", 1), Column("size", 3, right=True), Column("access", 2)
    rows = [
        (
            show.text(each["name"]),
            f"{_REGIONS.get(each['bar'], 'BAR' + str(each['bar']))}+{each['offset']:#05x}",
            str(each["size"]),
            show.text(each["access"]),
            f"{each['value']:#0{2 + 2 * each['size']}x}",
            show.text(each["meaning"]),
        )
        for each in found
    ]
    show.console().print(show.table([*columns, Column("value", right=True), Column("meaning")], rows))
    return 0


def monitor(arguments: argparse.Namespace) -> int:
    """``bellwire monitor [NAME]``."""
    if arguments.name:
        method(instance(arguments), "Describe", name=arguments.name)  # for an error if the name is wrong
    out = show.console()

    def print_it(reply: dict[str, Any]) -> None:
        event = reply["event"]
        if arguments.json:
            print(terminal.json_text(event), flush=True)
            return
        said = event["fields"].get("text") or ", ".join(f"{key} {value}" for key, value in event["fields"].items())
        what = f"{event['device'] or '-'} {event['kind']}: {said}"
        out.print(f"{show.clock(event['time'])} {show.text(what)}")

    stream(instance(arguments), print_it, "Monitor", endless=True, name=arguments.name)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """``bellwire logs NAME [-f] [-n N]``."""
    out = show.console()
    most = arguments.lines

    def print_it(reply: dict[str, Any]) -> None:
        nonlocal most
        lines = reply["lines"] if most is None else reply["lines"][-most:] if most else []
        most = None  # it counts for what there was
        for line in lines:
            if arguments.json:
                print(terminal.json_text(line), flush=True)
                continue
            words = show.paragraph(line["text"])
            colour = show.LEVELS.get(line["level"])
            said = f"[{colour}]{words}[/{colour}]" if colour else words
            out.print(f"{show.clock(line['time'])} {said}")

    stream(instance(arguments), print_it, "Log", endless=arguments.follow, name=arguments.name, follow=arguments.follow)
    return 0


def qemu_args(arguments: argparse.Namespace) -> int:
    """``bellwire qemu-args NAME...``."""
    names = arguments.name
    if arguments.slot is not None and len(names) > attach.FUNCTIONS:
        raise CommandError(f"--slot: a slot has {attach.FUNCTIONS} functions, and these are {len(names)} devices")
    sockets = [method(instance(arguments), "Describe", name=name)["device"]["socket"] for name in names]
    paths = [Path(socket) for socket in sockets]
    if arguments.libvirt:
        kind, text, told = "xml", attach.libvirt_xml(paths, slot=arguments.slot), terminal.lines
    else:
        kind, told = "command", terminal.line
        text = attach.qemu_command(paths, attach.accelerators(), slot=arguments.slot)
    if arguments.json:
        show.as_json({kind: text, "socket": sockets[0], "sockets": sockets})
    else:
        print(told(text))
    return 0


def _facts(device: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Device", f"{show.text(device['name'])} ({show.text(device['device'])})"),
        ("State", f"{show.state(device['state'])} since {show.clock(device['since'])}; {show.ago(device['since'])}"),
        ("Socket", show.text(device["socket"])),
    ]
    if device["error"]:
        facts.append(("Error", show.text(device["error"])))
    facts += [("Trouble", f"[yellow]{show.text(trouble)}[/yellow]") for trouble in device["troubles"].values()]
    if device["pid"]:
        facts += [("Process", str(device["pid"])), ("Memory", show.size(device["memory"]))]
    facts += [("Code", f"{show.text(file)} of {show.clock(when)}") for file, when in device["code"].items()]
    if device["box"]:
        facts.append(("Box", f"{show.text(show.box(device['box']))} (bellwire sandbox {show.text(device['name'])})"))
    if device["changed"]:
        changed = ", ".join(f"{key}={value}" for key, value in device["changed"].items())
        facts.append(("Set", f"{show.text(changed)}; the next start takes what the file says"))
    facts += show.lives(device)
    client = device["client"]
    if client:
        facts.append(("Client", f"process {client['pid']}, user {client['uid']}, for {show.ago(client['since'])}"))
        takes = ", ".join(f"{key} {value}" for key, value in client["capabilities"].items())
        facts.append(("", show.text(takes)))
        facts.append(("DMA", f"{client['maps']} maps, {show.size(client['bytes'])}"))
    counted = {key: value for key, value in device["statistics"].items() if value}
    if counted:
        facts.append(("Counted", show.text(", ".join(f"{key} {value}" for key, value in counted.items()))))
    return facts


def _is_pattern(word: str) -> bool:
    return any(each in word for each in "*?[")


def _slot(text: str) -> int:
    try:
        slot = int(text, 0)
    except ValueError:
        slot = -1
    if not 0 <= slot < attach.SLOTS:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {attach.SLOTS - 1:#x}, got {text!r}")
    return slot


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return int(text)
