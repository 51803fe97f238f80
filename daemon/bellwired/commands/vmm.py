"""``bellwire vmm``: boot a micro guest or Linux on KVM, with devices plugged in."""

from __future__ import annotations

import argparse
import re
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bellwire.paths import PathError
from bellwire.unix_sockets import check_peer, connect
from bellwire_vmm import guests
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import DeviceRefusedError, GuestImageError
from bellwire_vmm.machine.boot import MicroGuest
from bellwire_vmm.vmm import MAX_VCPUS, Machine
from bellwired.commands import vmm_linux as linux
from bellwired.commands.completion import GUESTS, completed
from bellwired.commands.vmm_guests import parameters, report
from bellwired.errors import CommandError
from bellwired.workers.process import allow_many_files
from vfio_user import DIALECTS, RATIFIED, Client, Dialect, TimedOut, VfioUserError

MIB = 1 << 20
LONGEST = 1_000_000  # seconds: twelve days
ANSWER = 5.0  # seconds for a device to answer a message
PATIENCE = 60.0  # seconds, with a micro guest
FOR_GUESTS, FOR_LINUX = ("parameters",), ("initrd", "append", "console", "no_reboot")
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
    parser.add_argument(
        "--cpus", "--vcpus", dest="vcpus", type=_vcpus, default=1, metavar="N", help="number of vCPUs (default 1)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="when to give up on the guest (default 60, with --kernel never)",
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
    parser.set_defaults(command=vmm, takes=("timeout",))


def vmm(arguments: argparse.Namespace) -> int:
    """Boot the guest, wait for its end, and report."""
    _refuse(arguments, FOR_GUESTS if arguments.kernel else FOR_LINUX)
    allow_many_files()  # an eventfd for each vector of each device
    if arguments.kernel:
        return linux.boot(arguments, partial(plug, dialect=DIALECTS[arguments.dialect]))
    given = _read(arguments.parameters) if arguments.parameters else parameters(arguments.guest)
    try:
        guest = MicroGuest(guests.image(arguments.guest), given)
    except GuestImageError as error:
        raise CommandError(f"--guest: {error}") from None
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(arguments.memory or 64 * MIB, arguments.vcpus))
        for path in arguments.devices:
            device = plug(machine, path, DIALECTS[arguments.dialect])
            print(f"slot {device.slot}: {device.vendor:04x}:{device.device:04x} at {path}")
            for each in device.routes():
                why = f" ({each.reason})" if each.reason else ""
                print(f"  BAR{each.bar}+{each.offset:#05x}  {each.mechanism}{why}")
        sys.stdout.flush()
        machine.load(guest)
        result = machine.run(arguments.timeout or PATIENCE)
        if result.text:
            print(result.text.rstrip("\n"))
        if not result.ok:
            raise CommandError(result.failure or f"the guest ended with code {result.code}")
        for line in report(arguments.guest, machine.memory):
            print(line)
        print(f"The guest ended well after {result.seconds:.2f} s; KVM_RUN returned {sum(result.runs):,} times.")
    return 0


def plug(machine: Machine, path: Path, dialect: Dialect = RATIFIED) -> ProxyDevice:
    """Plug the device that is served at ``path`` into ``machine``."""
    try:
        return machine.plug(_connect(path, dialect))
    except (VfioUserError, DeviceRefusedError) as error:
        text = str(error)
        hint = "a device serves one client at a time: has it another one?" if isinstance(error, TimedOut) else ""
        raise CommandError(text if text.startswith(f"{path}: ") else f"{path}: {text}", hint) from None


def _connect(path: Path, dialect: Dialect) -> Client:
    """Connect to the device at ``path``, whose process gets the guest's memory."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(ANSWER)
    try:
        connect(sock, path)
        check_peer(sock, path)
    except PathError as error:
        sock.close()
        raise CommandError(f"{path}: {error.strerror}", error.hint) from None
    except OSError as error:
        sock.close()
        raise CommandError(f"{path}: {error.strerror or error}; is a device being served there?") from None
    return Client(sock, timeout=ANSWER, dialect=dialect)


def _refuse(arguments: argparse.Namespace, options: Iterable[str]) -> None:
    """Refuse options for the other kind of guest, which would have no effect."""
    for option in options:
        if getattr(arguments, option):
            what = "--guest" if arguments.kernel else "--kernel"
            raise CommandError(f"--{option.replace('_', '-')} is for {what}")


def _memory(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of MiB, or one that ends in M or G")
    return int(found[1]) * (1024 if found[2] in ("G", "g") else 1) * MIB


def _vcpus(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_VCPUS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_VCPUS}, got {text!r}")
    return number


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
