"""``bellwire vmm``: a small guest on KVM, with devices plugged in."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bellwire_vmm import guests
from bellwire_vmm.errors import DeviceRefusedError
from bellwire_vmm.machine import Machine
from bellwire_vmm.proxy import ProxyDevice
from bellwired.errors import CommandError
from bellwired.guests import parameters, report
from vfio_user import Client, VfioUserError

MIB = 1 << 20
LONGEST = 1_000_000  # seconds: twelve days


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "vmm",
        help="boot a small guest on KVM with devices plugged in",
        description="Boots a micro guest on KVM with vfio-user devices plugged in, says how each sub-region is "
        "reached, and what the guest found. Ends with status 0 when the guest says that all is well.",
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
        "--guest",
        required=True,
        metavar="NAME",
        help=f"{', '.join(guests.names())}, or the path of a flat image of your own",
    )
    parser.add_argument("--memory", type=int, default=64, metavar="MIB", help="guest memory in MiB (default 64)")
    parser.add_argument("--vcpus", type=int, default=1, metavar="N", help="number of vCPUs (default 1)")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="when to give up on the guest (default 60)"
    )
    parser.add_argument(
        "--parameters", type=Path, metavar="FILE", help="what to put on the guest's parameter page (at most 4 KiB)"
    )
    parser.set_defaults(command=vmm)


def vmm(arguments: argparse.Namespace) -> int:
    """Boot, wait, report."""
    given = _read(arguments.parameters) if arguments.parameters else parameters(arguments.guest)
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(arguments.memory * MIB, arguments.vcpus))
        for path in arguments.devices:
            device = _plugged(machine, path)
            print(f"slot {device.slot}: {device.vendor:04x}:{device.device:04x} at {path}")
            for each in device.mechanisms():
                why = f" ({each.reason})" if each.reason else ""
                print(f"  BAR{each.bar}+{each.offset:#05x}  {each.mechanism}{why}")
        sys.stdout.flush()
        machine.load(arguments.guest, given)
        result = machine.run(arguments.timeout)
        if result.text:
            print(result.text.rstrip("\n"))
        if not result.ok:
            raise CommandError(result.failure or f"the guest ended with code {result.code}")
        for line in report(arguments.guest, machine.memory):
            print(line)
        print(f"The guest ended well after {result.seconds:.2f} s; KVM_RUN returned {sum(result.runs):,} times.")
    return 0


def _plugged(machine: Machine, path: Path) -> ProxyDevice:
    try:
        return machine.plug(Client.connect(path))
    except (VfioUserError, DeviceRefusedError) as error:
        text = str(error)
        raise CommandError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


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
