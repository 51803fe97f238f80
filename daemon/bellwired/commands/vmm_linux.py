"""``bellwire vmm --kernel``: Linux on KVM, its console on the terminal or in a file."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bellwire.paths import WRITABLE, Place
from bellwire_vmm.board import Board
from bellwire_vmm.board.keyboard import Keyboard, raw
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.registrations import Standing
from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import Linux, PanicWatch, read_kernel
from bellwire_vmm.machine.trouble import meaning
from bellwire_vmm.vmm import Machine, Request, RunResult
from bellwired.errors import CommandError

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
    with contextlib.ExitStack() as stack:
        console = _console(arguments.console, stack)
        while True:
            panics = PanicWatch()
            with Machine(arguments.memory or MEMORY, arguments.vcpus) as machine:
                devices = {path: plug(machine, path) for path in arguments.devices}
                result, left = _run(machine, guest, console, panics, arguments)
                hint = _hint(machine) if result.failure else ""
                if not arguments.console:
                    print()  # the guest may have stopped in the middle of a line
                _report(devices, result)
            if panics.message:
                print(f"The guest's kernel panicked: {panics.message}")
                return PANICKED
            if result.failure:
                raise CommandError(result.failure, hint)
            if end := _end(result, left=left, no_reboot=arguments.no_reboot):
                print(f"The guest {end} after {result.seconds:.1f} s.")
                return 0
            print("The guest reboots.", flush=True)


def _run(
    machine: Machine, guest: Linux, console: BinaryIO, panics: PanicWatch, arguments: argparse.Namespace
) -> tuple[RunResult, bool]:
    """Also whether the person at the terminal has left."""
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        machine.stop()

    def send(text: bytes) -> None:
        console.write(text)
        panics.hear(text)

    board = Board(machine, send)
    machine.load(guest)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_end_it())
        if not arguments.console and sys.stdin is not None:
            keys = sys.stdin.fileno()
            stack.enter_context(raw(keys))
            stack.enter_context(contextlib.closing(Keyboard(keys, board.uart, leave)))
        return machine.run(arguments.timeout), left


def _console(path: Path | None, stack: contextlib.ExitStack) -> BinaryIO:
    if path is not None:
        with Place(path) as place:
            fd = place.open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, WRITABLE)
        return stack.enter_context(os.fdopen(fd, "wb", buffering=0))
    sys.stdout.flush()
    return stack.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0))


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Handle fatal signals: restore the terminal and disconnect from the devices."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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
