"""``bellwire vmm --kernel``: Linux on KVM, its console on the terminal or in a file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bellwire_vmm.board import Board
from bellwire_vmm.board.keyboard import Keyboard, raw
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.registrations import Standing
from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import Linux, PanicWatch, read_kernel
from bellwire_vmm.machine.trouble import meaning
from bellwire_vmm.vmm import Machine, Request, RunResult
from bellwired.commands.console_file import console_file
from bellwired.commands.vmm_arrival import LINUX, Arrival
from bellwired.commands.vmm_departure import Departure
from bellwired.commands.vmm_signals import signals_end_it
from bellwired.errors import CommandError
from bellwired.guest.progress import shown, silent

COMMAND_LINE = "console=ttyS0 panic=-1"
MEMORY = 512 << 20
PANICKED = 3
"""The command's status after a kernel panic."""

Plug = Callable[[Machine, Path], ProxyDevice]


def boot(arguments: argparse.Namespace, plug: Plug) -> int:
    """Run Linux until it powers off; a reboot is a new machine with the same devices. The command's status."""
    try:
        kernel = read_kernel(arguments.kernel.read_bytes())
    except GuestImageError as error:
        raise CommandError(f"{arguments.kernel}: {error}") from None
    initrd = arguments.initrd.read_bytes() if arguments.initrd else b""
    guest = Linux(kernel, f"{COMMAND_LINE} {arguments.append}".rstrip(), initrd)

    def load(machine: Machine) -> str:
        machine.load(guest)
        return ""

    with contextlib.ExitStack() as stack:
        console = _console(arguments.console, stack)
        while True:
            with Machine(arguments.memory or MEMORY, arguments.cpus or 1) as machine:
                status = _use(machine, arguments, plug, console, load, again=not arguments.no_reboot)
            if status is not None:
                return status
            print("The guest reboots.", flush=True)


def go_on(arguments: argparse.Namespace, plug: Plug, comes: Arrival) -> int:
    """Run a Linux that comes from elsewhere. The command's status. A reboot is its end: there is no kernel to boot."""
    with contextlib.ExitStack() as stack:
        console = _console(arguments.console, stack)
        machine = stack.enter_context(Machine(comes.memory, comes.cpus))
        return _use(machine, arguments, plug, console, comes.take, again=False) or 0


def _use(
    machine: Machine,
    arguments: argparse.Namespace,
    plug: Plug,
    console: Callable[[bytes], object],
    begin: Callable[[Machine], str],
    *,
    again: bool,
) -> int | None:
    """Run a Linux that ``begin`` puts into the machine, and report. The command's status; None to boot ``again``."""
    devices = {path: plug(machine, path) for path in arguments.devices}
    ran = _run(machine, console, arguments, begin)
    hint = _hint(machine) if ran.result.failure else ""
    if not arguments.console:
        print()  # the guest may have stopped in the middle of a line
    _report(devices, ran.result)
    if ran.departure.left:
        ran.departure.check()
        print(f"The guest was {ran.departure.left}.")
        return 0
    if ran.panic:
        print(f"The guest's kernel panicked: {ran.panic}")
        return PANICKED
    if ran.result.failure:
        raise CommandError(ran.result.failure, hint)
    if end := _end(ran.result, left=ran.left, no_reboot=not again):
        print(f"The guest {end} after {ran.result.seconds:.1f} s.")
        ran.departure.check()
        return 0
    return None


class Ran(NamedTuple):
    """What came of a run: whether the person at the terminal has ended it, and the line of a panic if there was one."""

    result: RunResult
    left: bool
    panic: str
    departure: Departure


def _run(
    machine: Machine, console: Callable[[bytes], object], arguments: argparse.Namespace, begin: Callable[[Machine], str]
) -> Ran:
    left, panics = False, PanicWatch()

    def leave() -> None:
        nonlocal left
        left = True
        machine.stop()

    def send(text: bytes) -> None:
        console(text)
        panics.hear(text)
        departure.hear(text)

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(shown()) if arguments.console else silent
        departure = Departure(arguments, LINUX, progress)
        board = Board(machine, send)
        if came := begin(machine):
            print(f"The guest {came}.", flush=True)
        stack.enter_context(signals_end_it())
        if not arguments.console and sys.stdin is not None:
            keys = sys.stdin.fileno()
            stack.enter_context(raw(keys))
            stack.enter_context(contextlib.closing(Keyboard(keys, board.uart, leave)))
        return Ran(departure.run(machine, arguments.timeout), left, panics.message, departure)


def _console(path: Path | None, stack: contextlib.ExitStack) -> Callable[[bytes], object]:
    if path is not None:
        return stack.enter_context(console_file(path, functools.partial(print, file=sys.stderr, flush=True)))
    sys.stdout.flush()
    return stack.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)).write


def _hint(machine: Machine) -> str:
    why = meaning(machine.processors[0].stats)
    return f"{why}. Micro guests run here (--guest), and Linux does in QEMU's emulation." if why else ""


def _end(result: RunResult, *, left: bool, no_reboot: bool) -> str:
    """How the guest has ended; empty if it continues."""
    if left:
        return "was ended from the keyboard"
    match result.request:
        case Request.POWER_OFF:
            return "powered off"
        case Request.RESET:
            return "rebooted" if no_reboot else ""
        case None:
            raise CommandError(f"the guest wrote {result.code} to the exit port of micro guests, and that was the end")


def _report(devices: dict[Path, ProxyDevice], result: RunResult) -> None:
    print(f"KVM_RUN returned {sum(result.runs):,} times.")
    for path, device in devices.items():
        reads, writes = device.accesses
        print(f"slot {device.slot}: {device.vendor:04x}:{device.device:04x} at {path}: ", end="")
        print(f"{reads} reads and {writes} writes of its BARs left the guest")
        for each in _rows(device.standings()):
            print(f"  {each}")


def _rows(standings: Iterable[Standing]) -> Iterator[str]:
    """One line for each sub-region. A row with equal counts gets one line together."""

    def kind(standing: Standing) -> tuple[object, ...]:
        return standing.route._replace(offset=0), standing.address is None

    for _, group in itertools.groupby(standings, kind):
        row = list(group)
        (bar, offset, _, mechanism, reason), address, _ = row[0]
        last = f"-{row[-1].route.offset:#x}" if len(row) > 1 else ""
        where = f" at {address:#x}" if address is not None else f" ({reason})" if reason else ""
        many = f"{len(row)} of " if len(row) > 1 else ""
        yield f"BAR{bar}+{offset:#x}{last}  {many}{mechanism}{where}: {sum(each.exits for each in row)} exits"
