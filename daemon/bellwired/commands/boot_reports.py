"""What ``bellwire boot`` does about the reports of a guest's kernel: it shows them, and the run has failed."""

from __future__ import annotations

from bellwired.commands.boot_terminal import Screen
from bellwired.guest.console import TAIL
from bellwired.guest.decode import Decoder
from bellwired.guest.errors import MachineError
from bellwired.guest.machine import Machine
from bellwired.guest.reports import HANGS, Report, Watcher

MOST_SHOWN = 5
"""Reports that are shown in full. The first one is usually the reason for the others."""


class Reported:
    """Reads the console of a guest while it runs. A command in a guest that hangs is waited for no longer."""

    def __init__(self, screen: Screen) -> None:
        self.leaks: list[Report] = []
        self._screen = screen
        self._machine: Machine | None = None
        self._watcher = Watcher(self._told)
        self.feed = self._watcher.feed

    @property
    def found(self) -> list[Report]:
        """All reports so far."""
        return self._watcher.reports + self.leaks

    def watch(self, machine: Machine | None) -> None:
        """Give up on this guest when it hangs. None: on none."""
        self._machine = machine

    def check(self, machine: Machine) -> None:
        """Raise a MachineError if there are reports, with what the kernel has printed behind the last one."""
        if found := self.found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            behind = machine.console.text.rpartition(found[-1].text)[2].strip("\n").split("\n")[-TAIL:]
            raise MachineError(f"the guest's kernel reports: {found[0].title}{more}", console="\n".join(behind))

    def show(self, decoder: Decoder) -> None:
        """Show the reports when the guest has ended, with lines of source where symbols are at hand."""
        self._watcher.finish()
        found = self.found
        for report in found[:MOST_SHOWN]:
            self._screen.note(f"the guest's kernel has reported ({report.kind}):")
            for line in decoder.decode(report.text).splitlines():
                self._screen.note(f"  {line}")
        if len(found) > MOST_SHOWN:
            self._screen.note(f"({len(found) - MOST_SHOWN} more reports)")

    def _told(self, report: Report) -> None:
        """Note a report, on the thread that reads the console."""
        self._screen.note(f"the guest's kernel reports: {report.title}")
        if self._machine and report.kind in HANGS:
            self._machine.give_up(f"the guest hangs: {report.title}")
