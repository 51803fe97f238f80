"""``bellwire run``: one device in the foreground, as vfio-user asks of a backend program.

It does not daemonise, keeps fds 0, 1 and 2, and SIGTERM or SIGINT ends it cleanly; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
from pathlib import Path
from typing import Any

from bellwire import OptionError, PciDevice
from bellwire.serve.blame import told
from bellwire.serve.busy_poll import MOST
from bellwire.serve.worker import Worker
from bellwired.commands.completion import KINDS, OPTIONS, completed
from bellwired.commands.describe import describe
from bellwired.errors import CommandError
from bellwired.find import find_device
from bellwired.listen import activated, default_path, inherited, listening
from bellwired.workers.process import allow_many_files

ACTIVATED = "systemd"
MOST_FD = (1 << 31) - 1
LONGEST_POLL = round(MOST * 1e6)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="serve one device in the foreground",
        description="Serve one device over vfio-user until SIGTERM or Ctrl-C. Prints how to attach QEMU to it.",
    )
    kind = parser.add_argument(
        "device", metavar="DEVICE|FILE.py", help="a bundled device, or your own file (FILE.py:NAME picks one)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", type=Path, help="the socket to make and listen on")
    where.add_argument(
        "--fd",
        metavar="N|systemd",
        type=_descriptor,
        help="an inherited UNIX stream socket instead, listening or connected; or the one of socket activation",
    )
    option = parser.add_argument(
        "-o",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option of the device (repeat it for more)",
    )
    completed(kind, KINDS)
    completed(option, OPTIONS)
    parser.add_argument(
        "--print-capabilities",
        action="store_true",
        help="describe the device in JSON (BARs, registers, interrupts, capabilities, options), and end",
    )
    parser.add_argument(
        "--io-fd-entry",
        type=int,
        choices=(40, 48),
        default=40,
        help="bytes of a GET_REGION_IO_FDS entry: 40 is the ratified layout, 48 libvfio-user's (default 40)",
    )
    parser.add_argument(
        "--busy-poll",
        type=_microseconds,
        default=0,
        metavar="µS",
        help="microseconds to look for work before sleeping, while there is much of it: 0, the default, to "
        f"{LONGEST_POLL}",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    device = find_device(arguments.device)
    if arguments.print_capabilities:
        print(json.dumps(describe(device), indent=2))
        return 0
    instance = make(device, arguments.options)
    allow_many_files()  # an eventfd for each of 2048 vectors is more than the usual 1024
    settings = {"io_fd_entry_size": arguments.io_fd_entry, "busy_poll": arguments.busy_poll / 1e6}
    if arguments.fd is not None:
        given, listens = activated() if arguments.fd == ACTIVATED else inherited(arguments.fd)
        with given:
            worker = Worker(instance, given, **settings) if listens else Worker(instance, connection=given, **settings)
            _end_on_signals(worker)
            worker.run()
        return 0
    path = arguments.socket_path or default_path(device.name)
    with listening(path) as listener:
        worker = Worker(instance, listener, **settings)
        _end_on_signals(worker)
        worker.run(lambda: _announce(device.name, path))
    return 0


def make(device: type[PciDevice], options: list[str]) -> PciDevice:
    """An instance with ``KEY=VALUE`` texts for options."""
    values = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"-o {text}: expected KEY=VALUE")
        values[key] = value
    try:
        with told(f"{device.__name__}.__init__"):
            return device(**values)
    except OptionError as error:
        raise CommandError(str(error), f"bellwire run {device.name} --print-capabilities lists its options") from None


def qemu_command(path: Path) -> str:
    """A QEMU command line with this device in it; put a disk and what else you need after it."""
    device = {"driver": "vfio-user-pci", "socket": {"path": str(path.absolute()), "type": "unix"}}
    words = ["qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg", "-M", "q35", "-m", "1G"]
    words += ["-object", "memory-backend-memfd,id=mem,size=1G,share=on", "-machine", "memory-backend=mem"]
    words += ["-device", json.dumps(device, separators=(",", ":"))]
    return shlex.join(words)


def _announce(name: str, path: Path) -> None:
    print(f"{name}: serving on {path}. To attach it to QEMU (10.1.1 or newer):", flush=True)
    print(f"  {qemu_command(path)}", flush=True)


def _end_on_signals(worker: Worker) -> None:
    """Before anybody can know that the device is there, so that no signal finds Python's own handler."""
    log = logging.getLogger("bellwire")

    def end(number: int, _: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):  # for a hook that hangs, and so would not let it stop
            signal.signal(again, signal.SIG_DFL)
        log.info("%s: stopping", signal.Signals(number).name)
        worker.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _descriptor(text: str) -> int | str:
    if text == ACTIVATED:
        return text
    if not text.isdecimal() or int(text) > MOST_FD:
        raise argparse.ArgumentTypeError(f"expected a number or {ACTIVATED}, got {text!r}")
    return int(text)


def _microseconds(text: str) -> int:
    if not text.isdecimal() or int(text) > LONGEST_POLL:
        raise argparse.ArgumentTypeError(f"expected 0 to {LONGEST_POLL}, got {text!r}")
    return int(text)
