"""What ``bellwire boot`` does about the reports of a guest's kernel: it shows them, and the run has failed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellwired import terminal
from bellwired.commands.boot_terminal import Screen
from bellwired.guest.errors import MachineError
from bellwired.guest.leaks import read_leaks
from bellwired.guest.machine import Machine
from bellwired.guest.reports import HANGS, Report

MOST_SHOWN = 5
"""Reports that are shown in full. The first one is usually the reason for the others."""


class Alarm:
    """Hears of reports while the guest runs. A command in a guest that hangs is waited for no longer."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._machine: Machine | None = None

    def told(self, report: Report) -> None:
        """Note a report, on the thread that reads the console."""
        self._screen.note(f"the guest's kernel reports: {report.title}")
        if self._machine and report.kind in HANGS:
            self._machine.give_up(f"the guest hangs: {report.title}")

    def watch(self, machine: Machine) -> None:
        """Give up on this guest when it hangs."""
        self._machine = machine


@contextlib.contextmanager
def shown(machine: Machine) -> Iterator[None]:
    """Show the guest's reports at the end of the block, however that ends, decoded as far as symbols are at hand.

    Raises a MachineError if there are any and the block has raised no error.
    """
    try:
        yield
    finally:
        _show(machine, machine.reports)
    _fail(machine, machine.reports)


def check_leaks(machine: Machine, modules: Sequence[str]) -> None:
    """Show the memory that modules have lost, if the kernel has kmemleak. A MachineError if there is any."""
    leaks = read_leaks(machine, [Path(module).name.partition(".")[0] for module in modules])
    _show(machine, leaks)
    _fail(machine, leaks)


def _show(machine: Machine, reports: Sequence[Report]) -> None:
    for report in reports[:MOST_SHOWN]:
        print(f"The guest's kernel reports ({report.kind}):", file=sys.stderr)
        print(terminal.lines(machine.decoded(report)), file=sys.stderr)
    if len(reports) > MOST_SHOWN:
        print(f"({len(reports) - MOST_SHOWN} more reports)", file=sys.stderr)


def _fail(machine: Machine, reports: Sequence[Report]) -> None:
    if reports:
        more = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
        raise MachineError(f"the guest's kernel reports: {reports[0].title}{more}", console=machine.console.tail())
