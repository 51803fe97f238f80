"""``bellwire run``: one device in the foreground, as vfio-user asks of a backend program.

It does not daemonise, keeps fds 0, 1 and 2, and SIGTERM or SIGINT ends it cleanly; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from bellwire.serve.busy_poll import MOST
from bellwired import settings
from bellwired.commands import capture, parts, show
from bellwired.commands.completion import FILTERS, KINDS, OPTIONS, SCENARIOS, completed
from bellwired.commands.describe import describe
from bellwired.commands.serve import ACTIVATED, serve
from bellwired.errors import CommandError
from bellwired.find import find_functions
from vfio_user import DIALECTS, RATIFIED

MOST_FD = (1 << 31) - 1
LONGEST_POLL = round(MOST * 1e6)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="serve one device in the foreground",
        description="Serve one device over vfio-user until SIGTERM or Ctrl-C. Prints how to attach QEMU to it, and at "
        "its end a summary of what the guest has done. Meanwhile status, regs, set, reset, monitor and stop find it by "
        "its name, as they find a daemon's devices.",
    )
    kind = parser.add_argument(
        "device",
        metavar="DEVICE|FILE.py",
        help="a bundled device, or your own file. FILE.py:NAME picks one device of several. Of a file with several "
        "functions all are served, each by a process; FILE.py:N picks function N",
    )
    parser.add_argument(
        "--name",
        type=_name,
        help="its name for other commands, and of its socket (default: the device's own name; functions: the file's, "
        "with .0, .1 and so on)",
    )
    parser.add_argument(
        "--name-if-free",
        action="store_true",
        help="serve even if another device has the name already: other commands then do not find this one",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket-path",
        metavar="PATH",
        type=_path,
        help="the socket to make and listen on; functions have PATH.0, PATH.1",
    )
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
    stands = parser.add_argument(
        "--filter",
        dest="filters",
        metavar="NAME[:KEY=VALUE,...]",
        action="append",
        default=[],
        help="put a filter between the guest and the device, as in trace or delay:read=2ms (repeat it for more; the "
        "first stands on the guest's side). bellwire filters lists them",
    )
    parser.add_argument(
        "--suggest",
        dest="filters",
        action="append_const",
        const="suggest",
        help="at the end, print declarations for what the guest touched and the device lacks (as --filter suggest)",
    )
    scenario = parser.add_argument(
        "--fault",
        dest="faults",
        metavar="SCENARIO|FILE.toml",
        action="append",
        default=[],
        help="let the device fail as a scenario says, behind the other filters (repeat it for more). bellwire fault "
        "--list lists them",
    )
    completed(scenario, SCENARIOS)
    completed(kind, KINDS)
    completed(option, OPTIONS)
    completed(stands, FILTERS)
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
        "--dialect",
        choices=tuple(DIALECTS),
        default=RATIFIED.name,
        help="the text of the protocol that it speaks: the ratified one (the default), or the draft of January 2021",
    )
    parser.add_argument(
        "--busy-poll",
        type=_microseconds,
        default=0,
        metavar="MICROSECONDS",
        help=f"how long to look for work before sleeping, while there is much of it: 0, the default, to {LONGEST_POLL}",
    )
    parser.add_argument(
        "--ready-fd",
        type=_number,
        metavar="N",
        help="an inherited descriptor: write a line end to it and close it, once the device serves; print nothing then",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="stop in pdb at an exception in a hook, and print a QEMU line that waits for the debugger; it implies "
        "--no-sandbox",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="when the device's file, or what it imports from beside it, changes: go on with the new code, with "
        "the same state and the same client",
    )
    parser.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="when the process that serves dies or hangs, let another one go on with the same client and state (the "
        "default, except with --debug, --capture, --timeline and --record)",
    )
    parser.add_argument(
        "--restart-limit",
        type=_number,
        default=settings.DEATHS,
        metavar="N",
        help="with --restart: how many processes may die within five minutes, before the device is given up (default "
        f"{settings.DEATHS})",
    )
    parser.add_argument(
        "--hang-timeout",
        type=_seconds,
        default=settings.HANG,
        metavar="SECONDS",
        help="with --restart: after how long without progress in what a client wants the process counts as hung; 0: "
        f"never (default {settings.HANG:g})",
    )
    parser.add_argument(
        "--no-sandbox",
        action="store_true",
        help="run the device without a box: it may then do all that its user may, and debuggers can attach to it",
    )
    capture.add_flags(parser)
    parser.add_argument(
        "--runtime-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="keep the control socket in DIR"
    )
    parser.set_defaults(command=run, takes=("runtime_dir",))


def run(arguments: argparse.Namespace) -> int:
    """``bellwire run``: serve until a signal or ``bellwire stop`` ends it. Returns the exit status."""
    if arguments.dialect != RATIFIED.name and arguments.io_fd_entry != RATIFIED.entry:
        raise CommandError("--io-fd-entry is for the ratified dialect")
    kinds = find_functions(arguments.device)
    if arguments.print_capabilities:
        show.as_json(describe(kinds[0]) if len(kinds) == 1 else {"functions": list(map(describe, kinds))})
        return 0
    if len(kinds) == 1:
        return _status(serve(arguments, kinds[0]))
    if arguments.reload:
        raise CommandError(f"{arguments.device}: --reload goes with one device", "name one: FILE.py:NAME")
    part = parts.split(arguments, kinds)
    return part if isinstance(part, int) else _status(serve(part.arguments, part.kind, part))


def _status(status: int) -> int:
    """The exit status. If a signal has ended the process that served, the same one ends this process."""
    if status < 0:
        if -status != signal.SIGKILL:  # which has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _name(text: str) -> str:
    if not settings.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits and _ . @ -, at most 64")
    return text


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return Path(text)


def _descriptor(text: str) -> int | str:
    return text if text == ACTIVATED else _number(text, f"a number or {ACTIVATED}")


def _number(text: str, expected: str = "a number") -> int:
    if not text.isdecimal() or int(text) > MOST_FD:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= settings.LONGEST:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 to {settings.LONGEST:g}, got {text!r}")
    return seconds


def _microseconds(text: str) -> int:
    if not text.isdecimal() or int(text) > LONGEST_POLL:
        raise argparse.ArgumentTypeError(f"expected 0 to {LONGEST_POLL}, got {text!r}")
    return int(text)
