"""The devices of ``bellwire boot``: what each word on the command line means, and the options of each."""

from __future__ import annotations

import argparse
import itertools
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from bellwired.commands.control_client import Instance, NoDaemonError, all_devices
from bellwired.errors import CommandError
from bellwired.find import find_device, names
from bellwired.guest import board
from bellwired.guest.board import MOST_DEVICES, MOST_ROOT_PORTS
from bellwired.guest.plan import Plugged
from bellwired.guest.served import Served, Wanted, sockets
from bellwired.places import Places
from bellwired.settings import NAME
from bellwired.sources import is_path

CHANGES = {"-o": "set", "--filter": "filter", "--fault": "fault"}
"""The commands that change what these flags set."""
ANSWER = 10.0  # seconds for a daemon to answer


def start(arguments: argparse.Namespace, served: Served) -> dict[str, Path]:
    """Start the devices, or find those that run already. The path of each one's socket, by its name, in their order."""
    words = arguments.devices
    places = Places.of(runtime_dir=arguments.runtime_dir)
    flags = ["--log-level", arguments.log_level]
    flags += ["--runtime-dir", str(arguments.runtime_dir)] if arguments.runtime_dir else []
    if len(words) > MOST_DEVICES:
        raise CommandError(f"{len(words)} devices: the machine has places for {MOST_DEVICES}")
    if arguments.root_port and len(words) > MOST_ROOT_PORTS:
        raise CommandError(f"--root-port: {len(words)} devices, and the machine has {MOST_ROOT_PORTS} root ports")
    called = call(words)
    given = {
        "-o": share_out(arguments.options, list(called)),
        "--filter": share_filters("--filter", arguments.filters, list(called)),
        "--fault": share_filters("--fault", arguments.faults, list(called)),
    }
    paths = {}
    for name, word in called.items():
        socket = running(word, places)
        own = [(flag, each) for flag, shared in given.items() for each in shared[name]]
        if socket is None:
            paths[name] = served.add(Wanted(name, word, [*itertools.chain.from_iterable(own), *flags]))
        elif own:
            flag, each = own[0]
            raise CommandError(f"{flag} {each}: {word} runs already", f"bellwire {CHANGES[flag]} changes that")
        else:
            paths[name] = socket
    return paths


def plug(paths: Mapping[str, Path], *, root_ports: bool = False) -> list[Plugged]:
    """Give each device that serves a slot of bus 0, from 1 on; the functions of one device share its slot.

    With ``root_ports``, each device is behind a port of its own instead. QEMU is not told their names: it would
    refuse some, such as 8250.
    """
    plugged = []
    for number, path in enumerate(paths.values()):
        functions = sockets(path)
        for function, socket in enumerate(functions):
            place = board.place(number, function, several=len(functions) > 1, root_port=root_ports)
            plugged.append(Plugged(socket, properties=place.properties))
    return plugged


def call(words: Sequence[str]) -> dict[str, str]:
    """The words by the names of their devices: the kind's or the file's, with a number if there are several."""
    called: dict[str, str] = {}
    for word in words:
        path, _, picked = word.partition(":")
        stem = picked or Path(path).stem or Path(path).absolute().name
        base = stem if NAME.fullmatch(stem) else "device"
        number = 1
        while (name := base if number == 1 else f"{base}-{number}") in called:
            number += 1
        called[name] = word
    return called


def share_out(options: Sequence[str], called: Sequence[str]) -> dict[str, list[str]]:
    """The options of each device. DEVICE.KEY=VALUE names it; KEY=VALUE will do if there is only one."""
    shared: dict[str, list[str]] = {name: [] for name in called}
    for option in options:
        key, equals, _ = option.partition("=")
        name, dot, _ = key.partition(".")
        if not equals:
            raise CommandError(f"-o {option}: expected [DEVICE.]KEY=VALUE")
        if dot and name in shared:
            shared[name].append(option[len(name) + 1 :])
        elif dot or len(called) != 1:
            problem = f"there is no device {name}" if dot else "whose option is this?"
            there = f"begin with one of {', '.join(f'{each}.' for each in called)}" if called else "name a device first"
            raise CommandError(f"-o {option}: {problem}", there)
        else:
            shared[called[0]].append(option)
    return shared


def share_filters(flag: str, words: Sequence[str], called: Sequence[str]) -> dict[str, list[str]]:
    """The filters or faults of each device. DEVICE.FILTER names it; FILTER will do if there is only one."""
    shared: dict[str, list[str]] = {name: [] for name in called}
    for word in words:
        name, dot, rest = word.partition(".")
        if dot and name in shared:
            shared[name].append(rest)
        elif len(called) == 1:
            shared[called[0]].append(word)
        else:
            there = f"begin with one of {', '.join(f'{each}.' for each in called)}" if called else "name a device first"
            raise CommandError(f"{flag} {word}: before which device?", there)
    return shared


def running(word: str, places: Places) -> Path | None:
    """The socket of a device that runs already: the word is its path, or its name at the daemon. None: a new one."""
    path = word.partition(":")[0]
    if is_path(path) and word.endswith(".sock") and not Path(word).exists():
        raise CommandError(f"{word}: no such socket", "a vfio-user server must listen there before the guest boots")
    if is_path(path) or (word.endswith(".sock") and Path(word).exists()):
        return Path(word) if _is_socket(Path(word)) else None
    if path in names(()):
        return None
    try:
        found = all_devices(Instance(places, ANSWER))
    except NoDaemonError:
        found = []
    for device in found:
        if device["name"] == word:
            return Path(device["socket"])
    find_device(word)  # it says what there is
    return None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
