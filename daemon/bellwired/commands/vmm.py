"""``bellwire vmm``: boot a micro guest or Linux on KVM, with devices plugged in."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from bellwire_vmm import guests
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import DeviceRefusedError, GuestImageError
from bellwire_vmm.guests.layout import ResultError
from bellwire_vmm.machine.boot import MicroGuest
from bellwire_vmm.vmm import MAX_VCPUS, Machine
from bellwired.commands import vmm_linux as linux
from bellwired.commands.completion import GUESTS, completed
from bellwired.commands.vmm_arrival import LINUX, arrival
from bellwired.commands.vmm_departure import Departure
from bellwired.commands.vmm_guests import parameters, report
from bellwired.commands.vmm_options import DEFAULTS, for_linux_alone, refuse
from bellwired.commands.vmm_signals import signals_end_it
from bellwired.commands.vmm_sockets import ANSWER, connected
from bellwired.errors import CommandError
from bellwired.guest.progress import shown
from bellwired.workers.process import allow_many_files
from vfio_user import DIALECTS, RATIFIED, Client, Dialect, RemoteError, TimedOut, VfioUserError

MIB = 1 << 20
LONGEST = 1_000_000  # seconds: twelve days
PATIENCE = 60.0  # seconds, with a micro guest
MOST_ROUNDS = 10_000
_SIZE = re.compile(r"([1-9]\d{0,8})([MG]?)", re.IGNORECASE)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "vmm",
        help="boot a small guest or Linux on KVM with devices plugged in",
        description="Boots a micro guest or an unmodified Linux kernel on KVM with vfio-user devices plugged in, and "
        "says how each sub-region is reached. With --guest, ends with status 0 when the guest says that all is well. "
        "With --kernel, the guest has the terminal as its serial console until it powers off: then the status is 0, "
        "or 3 after a kernel panic. Ctrl-] three times within a second ends it at once.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    guest = what.add_argument(
        "--guest",
        metavar="NAME",
        help=f"a micro guest: {', '.join(guests.names())}, or the path of a flat image of your own",
    )
    completed(guest, GUESTS)
    what.add_argument(
        "--kernel", metavar="IMAGE", type=Path, help="a Linux kernel for x86-64: a bzImage, or a vmlinux with PVH entry"
    )
    what.add_argument(
        "--restore", metavar="FILE", type=Path, help="go on with the guest that --save has written to FILE"
    )
    what.add_argument(
        "--listen",
        metavar="SOCKET",
        type=Path,
        help="wait at SOCKET for the guest of a bellwire vmm --migrate-to, and go on with it",
    )
    parser.add_argument(
        "--device",
        dest="devices",
        metavar="SOCKET",
        type=Path,
        action="append",
        default=[],
        help="the socket of a vfio-user server (repeat it for more devices)",
    )
    parser.add_argument(
        "--dialect",
        choices=tuple(DIALECTS),
        default=RATIFIED.name,
        help="the text of the protocol that the devices speak: the ratified one (the default), or the draft of January "
        "2021",
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        metavar="SIZE",
        help="guest memory, in MiB unless it ends in M or G (default 64, with --kernel 512; at most 3G)",
    )
    parser.add_argument("--cpus", "--vcpus", dest="cpus", type=_cpus, metavar="N", help="number of vCPUs (default 1)")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="when to give up on the guest (default 60, with --kernel never); with --listen, also how long to wait "
        "for it (default: for ever)",
    )
    parser.add_argument(
        "--parameters", type=Path, metavar="FILE", help="with --guest: what to put on its parameter page (up to 4 KiB)"
    )
    parser.add_argument("--initrd", type=Path, metavar="FILE", help="with --kernel: its initial RAM disk")
    parser.add_argument(
        "--append",
        default="",
        metavar="TEXT",
        help=f"with --kernel: more of its command line, which begins with {linux.COMMAND_LINE!r}",
    )
    parser.add_argument(
        "--console", type=Path, metavar="FILE", help="with --kernel: write the console there, and read no keys"
    )
    parser.add_argument(
        "--no-reboot", action="store_true", help="with --kernel: end when the guest reboots, with status 0"
    )
    leaves = parser.add_mutually_exclusive_group()
    leaves.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="when the moment comes (--at, --when, or SIGUSR1), write the machine to FILE, and end",
    )
    leaves.add_argument(
        "--migrate-to",
        type=Path,
        metavar="SOCKET",
        help="when the moment comes, move the guest to the bellwire vmm that listens at SOCKET, and end",
    )
    parser.add_argument(
        "--at",
        type=_seconds,
        metavar="SECONDS",
        help="with --save or --migrate-to: the moment, after the guest's start",
    )
    parser.add_argument(
        "--when",
        type=_text,
        metavar="TEXT",
        help="with --save or --migrate-to: the moment at which Linux writes TEXT to its console",
    )
    parser.add_argument(
        "--pause",
        type=_seconds,
        default=DEFAULTS["pause"],
        metavar="SECONDS",
        help="with --migrate-to: how long the guest is to stand still (default %(default)s); after five times as "
        "much, and 15 s at least, it goes on here",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=DEFAULTS["rounds"],
        metavar="N",
        help="with --migrate-to: after so many copies of what the guest wrote meanwhile, give up (default %(default)s)",
    )
    parser.add_argument(
        "--json",
        dest="figures",
        type=Path,
        metavar="FILE",
        help="with --save or --migrate-to: write the figures to FILE (- for stdout; all else then goes to stderr)",
    )
    parser.set_defaults(command=vmm, takes=("timeout",))


def vmm(arguments: argparse.Namespace) -> int:
    """Boot the guest, or go on with one that comes from elsewhere; wait for its end, and report."""
    refuse(arguments)
    with redirect_stdout(sys.stderr) if str(arguments.figures) == "-" else nullcontext():
        return _vmm(arguments)


def _vmm(arguments: argparse.Namespace) -> int:
    allow_many_files()  # an eventfd for each vector of each device
    plugs = partial(plug, dialect=DIALECTS[arguments.dialect])
    if arguments.kernel:
        return linux.boot(arguments, plugs)
    if arguments.guest:
        given = _read(arguments.parameters) if arguments.parameters else parameters(arguments.guest)
        try:
            guest = MicroGuest(guests.image(arguments.guest), given)
        except GuestImageError as error:
            raise CommandError(f"--guest: {error}") from None

        def load(machine: Machine) -> str:
            machine.load(guest)
            return ""

        with Machine(arguments.memory or 64 * MIB, arguments.cpus or 1) as machine:
            return _micro(machine, arguments, plugs, arguments.guest, load)
    with arrival(arguments) as comes:
        if comes.guest == LINUX:
            return linux.go_on(arguments, plugs, comes)
        for_linux_alone(arguments)
        with Machine(comes.memory, comes.cpus) as machine:
            return _micro(machine, arguments, plugs, comes.guest, comes.take)


def _micro(
    machine: Machine, arguments: argparse.Namespace, plugs: linux.Plug, name: str, begin: Callable[[Machine], str]
) -> int:
    """Run a micro guest that ``begin`` puts into the machine, and report."""
    for path in arguments.devices:
        device = plugs(machine, path)
        print(f"slot {device.slot}: {device.vendor:04x}:{device.device:04x} at {path}")
        for each in device.routes():
            why = f" ({each.reason})" if each.reason else ""
            print(f"  BAR{each.bar}+{each.offset:#05x}  {each.mechanism}{why}")
    if came := begin(machine):
        print(f"The guest {came}.")
    sys.stdout.flush()
    with signals_end_it(), shown() as progress:
        departure = Departure(arguments, name, progress)
        result = departure.run(machine, arguments.timeout or PATIENCE)
    if result.text:
        print(result.text.rstrip("\n"))
    if departure.left:
        departure.check()
        print(f"The guest was {departure.left}.")
        return 0
    if not result.ok:
        raise CommandError(result.failure or f"the guest ended with code {result.code}")
    try:
        print("".join(f"{line}\n" for line in report(name, machine.memory)), end="")
    except ResultError as error:
        raise CommandError(str(error)) from None
    print(f"The guest ended well after {result.seconds:.2f} s; KVM_RUN returned {sum(result.runs):,} times.")
    departure.check()
    return 0


def plug(machine: Machine, path: Path, dialect: Dialect = RATIFIED) -> ProxyDevice:
    """Plug the device that is served at ``path`` into ``machine``."""
    try:
        return machine.plug(_connect(path, dialect))
    except (VfioUserError, DeviceRefusedError) as error:
        text = str(error)
        hint = "a device serves one client at a time: has it another one?" if isinstance(error, TimedOut) else ""
        if isinstance(error, RemoteError) and error.command == "DEVICE_RESET":
            hint = "does it speak another dialect? --dialect says which one to use"
        raise CommandError(text if text.startswith(f"{path}: ") else f"{path}: {text}", hint) from None


def _connect(path: Path, dialect: Dialect) -> Client:
    """Connect to the device at ``path``, whose process gets the guest's memory."""
    return Client(connected(path, "is a device being served there?"), timeout=ANSWER, dialect=dialect)


def _memory(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of MiB, or one that ends in M or G")
    return int(found[1]) * (1024 if found[2] in ("G", "g") else 1) * MIB


def _cpus(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_VCPUS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_VCPUS}, got {text!r}")
    return number


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a text to wait for")
    return text


def _rounds(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_ROUNDS}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0 and at most {LONGEST}")
    return seconds


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
