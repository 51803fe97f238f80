"""The commands that operate a running daemon: list, status, start, stop, restart, reset, set, reload, regs, monitor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwired.commands import show
from bellwired.commands.control_client import method, stream
from bellwired.commands.run import qemu_command
from bellwired.errors import CommandError
from bellwired.places import Places

INACTIVE = 3  # as systemctl status has it
VERBS = {
    "start": ("Start", "start a device, and wait until it accepts clients"),
    "stop": ("Stop", "stop a device in order, and remove its socket"),
    "restart": ("Restart", "give a device a new worker; clients that connect meanwhile wait"),
    "reset": ("Reset", "reset a device, as its guest could"),
}


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands; ``shared`` has the flags that all of them take."""

    def add(name: str, work: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", parents=[shared]
        )
        parser.set_defaults(command=work)
        return parser

    add("list", list_devices, "list the daemon's devices")
    add("status", status, "show how a device is doing; 3 is the exit status when it is not running").add_argument(
        "name"
    )
    for name, (_, about) in VERBS.items():
        add(name, do, about).add_argument("name", nargs="+")
        commands.choices[name].set_defaults(verb=name)
    parser = add("set", set_options, "give options of a running device other values, until it is started anew")
    parser.add_argument("name")
    parser.add_argument("option", nargs="+", metavar="KEY=VALUE")
    add("reload", reload, "have the daemon read configuration and plugins again")
    add("regs", registers, "show a device's registers, decoded; no read hook is run").add_argument("name")
    add("monitor", monitor, "show what happens, as it happens").add_argument("name", nargs="?")
    add("qemu-args", qemu_args, "print the QEMU arguments that attach a device").add_argument("name")


def places(arguments: argparse.Namespace) -> Places:
    """Where the instance is that the flags name."""
    return Places.of(arguments.config_dir, arguments.runtime_dir)


def list_devices(arguments: argparse.Namespace) -> int:
    """``bellwire list``."""
    devices = method(places(arguments), "List")["devices"]
    if arguments.json:
        show.as_json(devices)
        return 0
    table = show.table(
        "name", "device", "state", "for", "client", "memory", "restarts", right=frozenset(["memory", "restarts"])
    )
    for each in devices:
        table.add_row(
            show.text(each["name"]),
            show.text(each["device"] or "-"),
            show.state(each["state"]),
            show.ago(each["since"]),
            "yes" if each["connected"] else "-",
            show.size(each["memory"]),
            str(each["restarts"]),
        )
    show.console().print(table if devices else "The daemon has no devices: put a file into devices.d (bellwire new).")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """``bellwire status NAME``."""
    device = method(places(arguments), "Describe", name=arguments.name)["device"]
    running = device["state"] == "running"
    if arguments.json:
        show.as_json(device)
        return 0 if running else INACTIVE
    out = show.console()
    for label, value in _facts(device):
        out.print(f"{label:>11}: {value}")
    if device["recent"]:
        out.print()
        for note in device["recent"]:
            out.print(f"{show.clock(note['time'])} {show.text(note['text'])}")
    return 0 if running else INACTIVE


def do(arguments: argparse.Namespace) -> int:
    """``bellwire start|stop|restart|reset NAME...``: each is tried, whatever became of the one before."""
    failed = {}
    for name in arguments.name:
        try:
            method(places(arguments), VERBS[arguments.verb][0], name=name)
        except CommandError as error:
            failed[name] = error
    if arguments.json:
        show.as_json({name: str(failed.get(name, "")) for name in arguments.name})
    show.errors(failed.values())
    return 1 if failed else 0


def set_options(arguments: argparse.Namespace) -> int:
    """``bellwire set NAME KEY=VALUE...``: in that order, up to the first that fails."""
    for word in arguments.option:
        key, equals, value = word.partition("=")
        if not equals:
            raise CommandError(f"{word}: expected KEY=VALUE")
        method(places(arguments), "Set", name=arguments.name, option=key, value=value)
    if arguments.json:
        show.as_json({"name": arguments.name, "options": arguments.option})
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """``bellwire reload``."""
    outcome = method(places(arguments), "Reload")["outcome"]
    if arguments.json:
        show.as_json(outcome)
    else:
        for word in ("started", "restarted", "stopped"):
            if outcome[word]:
                print(f"{word}: {', '.join(outcome[word])}")
        if not any(outcome[word] for word in ("started", "restarted", "stopped", "failed")):
            print("nothing has changed")
    show.errors(map(CommandError, outcome["failed"].values()))
    return 1 if outcome["failed"] else 0


def registers(arguments: argparse.Namespace) -> int:
    """``bellwire regs NAME``."""
    found = method(places(arguments), "Registers", name=arguments.name)["registers"]
    if arguments.json:
        show.as_json(found)
        return 0
    table = show.table("register", "where", "size", "access", "value", "meaning", right=frozenset(["size", "value"]))
    for each in found:
        where = f"BAR{each['bar']}+{each['offset']:#05x}"
        value = f"{each['value']:#0{2 + 2 * each['size']}x}"
        table.add_row(
            show.text(each["name"]), where, str(each["size"]), each["access"], value, show.text(each["meaning"])
        )
    show.console().print(table)
    return 0


def monitor(arguments: argparse.Namespace) -> int:
    """``bellwire monitor [NAME]``."""
    if arguments.name:
        method(places(arguments), "Describe", name=arguments.name)  # so that a wrong name is said
    out = show.console()

    def each(event: dict[str, Any]) -> None:
        if arguments.json:
            print(json.dumps(event), flush=True)
            return
        said = event["fields"].get("text") or ", ".join(f"{key} {value}" for key, value in event["fields"].items())
        out.print(f"{show.clock(event['time'])} {show.text(event['device'] or '-')} {event['kind']}: {show.text(said)}")

    stream(places(arguments), arguments.name, each)
    return 0


def qemu_args(arguments: argparse.Namespace) -> int:
    """``bellwire qemu-args NAME``."""
    device = method(places(arguments), "Describe", name=arguments.name)["device"]
    command = qemu_command(Path(device["socket"]))
    if arguments.json:
        show.as_json({"command": command, "socket": device["socket"]})
    else:
        print(command)
    return 0


def _facts(device: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Device", f"{show.text(device['name'])} ({show.text(device['device'])})"),
        ("State", f"{show.state(device['state'])} since {show.clock(device['since'])}; {show.ago(device['since'])}"),
        ("Socket", show.text(device["socket"])),
    ]
    if device["error"]:
        facts.append(("Error", show.text(device["error"])))
    if device["pid"]:
        facts += [("Process", str(device["pid"])), ("Memory", show.size(device["memory"]))]
    if device["restarts"]:
        facts.append(("Restarts", str(device["restarts"])))
    client = device["client"]
    if client:
        facts.append(("Client", f"process {client['pid']}, user {client['uid']}, for {show.ago(client['since'])}"))
        takes = ", ".join(f"{key} {value}" for key, value in client["capabilities"].items())
        facts.append(("", show.text(takes)))
        facts.append(("DMA", f"{client['maps']} maps, {show.size(client['bytes'])}"))
    counted = {key: value for key, value in device["statistics"].items() if value}
    if counted:
        facts.append(("Counted", ", ".join(f"{key} {value}" for key, value in counted.items())))
    return facts
