"""A machine that runs: its devices, served in this process, and the guest that they are plugged into."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bellwire import OptionError, PciDevice
from bellwire.faults import Fault
from bellwire.faults.scenario import Scenario, ScenarioError
from bellwire.testing import Serving, serve
from bellwired.errors import CommandError
from bellwired.find import find_functions
from bellwired.guest import board
from bellwired.guest.decode import Decoder
from bellwired.guest.errors import CommandFailed, MachineError, ModuleInUse
from bellwired.guest.leaks import read_leaks
from bellwired.guest.machine import Machine
from bellwired.guest.plan import Plan, Plugged
from bellwired.guest.reports import HANGS, Report, Watcher
from bellwired.guest.roots import environment
from bellwired.testing.traces import Trace
from bellwired.testing.wanted import Wanted, WantedDevice

PATIENCE = 20.0  # seconds for a small command of our own
LET_GO = """
for there in {places}; do
    [ -e /sys/bus/pci/devices/$there/driver ] || continue
    driver=$(readlink /sys/bus/pci/devices/$there/driver)
    echo $there ${{driver##*/}}
    echo $there >/sys/bus/pci/devices/$there/driver/unbind
done
"""
"""Takes the devices from their drivers, and prints which had them."""
BIND = "echo {there} >/sys/bus/pci/drivers/{driver}/bind\n"


class GuestReport(AssertionError):
    """The guest's kernel has reported a mistake: an oops, a warning, a hung task or the like."""


class DeviceMistake(AssertionError):
    """A hook of a device has raised an error that is no GuestError."""


@dataclass(frozen=True)
class Placed:
    """A device of the machine: its ``id``, its place on the guest's bus, what serves it, and what it has logged."""

    id: str
    place: str
    serving: Serving[PciDevice]
    trace: Trace


class Running:
    """A machine for tests, one after the other. It ends with :meth:`close`.

    A command, and loading or removing the driver, may take ``timeout`` seconds.
    """

    def __init__(
        self, wanted: Wanted, modules: Sequence[Path], path: Sequence[Path], plan: dict[str, Any], timeout: float
    ) -> None:
        self.wanted = wanted
        self.timeout = timeout
        self.spoiled = ""
        """Why no other test can use the machine; empty if one can."""
        self.devices: list[Placed] = []
        self._watcher = Watcher(self._told)
        self._modules = [module for module in modules if module.suffix == ".ko"]
        self._decoder = Decoder(getattr(plan["kernel"], "vmlinux", None), self._modules, path)
        self._loaded: list[str] = []
        self._booted = False
        self._marks = 0
        self._begun = ""
        self._seen = 0  # reports of tests before
        self._leaks: list[Report] = []
        self._before: list[dict[str, int]] = []
        self._faults: list[tuple[Placed, Fault]] = []
        traces: dict[str, Trace] = {}
        with contextlib.ExitStack() as stack:
            devices = []
            for number, chosen in enumerate(wanted.devices):
                kinds = _kinds(chosen)
                for function, kind in enumerate(kinds):
                    if kind.name not in traces:
                        traces[kind.name] = stack.enter_context(Trace(kind.name, detail=wanted.trace))
                    serving = stack.enter_context(serve(kind, **chosen.options))
                    place = board.place(number, function, several=len(kinds) > 1, root_port=wanted.root_port)
                    id = (not function and chosen.id) or f"{kind.name}{len(self.devices)}"
                    devices.append(Plugged(serving.path, id, place.properties))
                    self.devices.append(Placed(id, place.address, serving, traces[kind.name]))
            made = Plan(**plan, devices=devices, listeners=(self._watcher.feed,))
            if wanted.root_port:
                made = replace(made, ports=max(made.ports, len(wanted.devices)))
            folders = ":".join([*map(str, path), environment(made)["PATH"]])
            made = replace(made, environment={"PATH": folders, **made.environment})
            self.machine: Machine = stack.enter_context(Machine.start(made))
            self._stack = stack.pop_all()
        self._booted = True

    @property
    def ended(self) -> bool:
        """Whether the machine has switched itself off."""
        return self.machine.console.wait_for_end(0)

    def begin(self, name: str) -> None:
        """A test begins: load the driver."""
        self._begun = self._mark(f"{name} begins")
        self._seen = len(self._watcher.reports)
        self._leaks = []
        for placed in self.devices:
            placed.trace.clear()
        self._before = [placed.serving.statistics() for placed in self.devices]
        self.load()

    def check(self) -> None:
        """Raise a GuestReport if the kernel has reported a mistake since the test began; a DeviceMistake for a hook."""
        __tracebackhide__ = True
        if not (self.ended or self.spoiled):
            self._mark("the test ends")
        if self._loaded and not self.ended and not self.reports():
            self._leaks = read_leaks(self.machine, self._loaded)
        found = self.reports()
        if found:
            self.spoiled = f"of {found[0].kind} in the test before"
            raise GuestReport("the guest's kernel says: " + "; ".join(report.title for report in found))
        for number, placed in enumerate(self.devices):
            if self.counted(number, PATIENCE).get("failures"):
                raise DeviceMistake(f"a hook of {placed.id} has failed: its log says where")

    def end(self) -> None:
        """A test has ended: remove the driver and reset the devices, for the next test."""
        __tracebackhide__ = True
        if self.spoiled or self.ended:
            return
        self.unload()
        self.check()
        if self.wanted.reset:
            self.reset_devices()

    def put_in(self, scenario: Scenario) -> None:
        """Put the faults of a scenario into those devices that can have all of them. An error if that is none."""
        wrong: list[ScenarioError | OptionError] = []
        for placed in self.devices:
            before = len(self._faults)
            try:
                for fault in scenario.faults(type(placed.serving.device)):
                    placed.serving.call(placed.serving.filters.add, fault)
                    self._faults.append((placed, fault))
            except (ScenarioError, OptionError) as error:
                wrong.append(error)
                self._take_out(before)
        if wrong and not self._faults:
            raise wrong[0]

    def take_out(self) -> None:
        """Take the faults out: devices work again."""
        self._take_out(0)

    def _take_out(self, left: int) -> None:
        while len(self._faults) > left:
            placed, fault = self._faults.pop()
            if fault in dict(placed.serving.filters).values():
                placed.serving.call(placed.serving.filters.remove, fault)

    @property
    def struck(self) -> str:
        """A line for each fault that is in a device: how often it has struck."""
        return "\n".join(
            f"{placed.id}: {fault}: struck {fault.trigger.struck} of {fault.trigger.seen}"
            for placed, fault in self._faults
        )

    def load(self) -> None:
        """Load the modules that are not loaded, in their order."""
        for module in self._modules[len(self._loaded) :]:
            parameters = self.wanted.parameters if module == self._modules[-1] else ()
            self.machine.insert(module, *parameters, timeout=self.timeout)
            self._loaded.append(module.stem)

    def reboot(self) -> None:
        """Start the guest's kernel again, and load the modules."""
        self.machine.reboot()
        self._loaded.clear()
        self.load()

    def unload(self) -> None:
        """Remove the modules that are loaded, in the opposite order."""
        while self._loaded:
            try:
                self.machine.remove(self._loaded[-1], self.timeout)
            except ModuleInUse:  # a console on a frame buffer has its module in use until the device is taken away
                self._let_go()
                self.machine.remove(self._loaded[-1], self.timeout)
            self._loaded.pop()

    def reset_devices(self) -> None:
        """Reset all devices. A driver that has one meanwhile lets it go before, and gets it back after that."""
        bound = self._let_go()
        for placed in self.devices:
            placed.serving.reset()
        if bound:
            self._run("".join(BIND.format(there=there, driver=driver) for there, driver in bound))

    def find(self, which: type[PciDevice] | str | int) -> Placed:
        """A device of the machine. A LookupError if there is none such, or if there are several."""
        if isinstance(which, int):
            return self.devices[which]
        found = [
            placed
            for placed in self.devices
            if (which in (placed.id, placed.serving.device.name) if isinstance(which, str) else _is(placed, which))
        ]
        exact = [placed for placed in found if placed.id == which] or found
        if len(exact) == 1:
            return exact[0]
        name = which if isinstance(which, str) else which.__name__
        there = ", ".join(f"{placed.id} ({type(placed.serving.device).__name__})" for placed in self.devices)
        raise LookupError(f"{len(exact) or 'no'} devices of the machine are {name}: there are {there}")

    def reports(self) -> list[Report]:
        """What the kernel has reported since the test began, and the memory that the driver has lost."""
        return self._watcher.reports[self._seen :] + self._leaks

    def decoded(self, report: Report) -> str:
        """The text of a report, with lines of source behind addresses."""
        return self._decoder.decode(report.text)

    def console(self) -> str:
        """What the kernel has printed since the test began."""
        return self.machine.console.text.rpartition(self._begun)[2] if self._begun else self.machine.console.text

    def printed(self) -> str:
        """The same, with all that the kernel has printed until now."""
        mark = self._mark("so far")
        text = self.console()
        return text.rpartition(mark)[0] or text

    def counted(self, number: int, patience: float) -> dict[str, int]:
        """What a device has counted since the test began."""
        before = self._before[number] if number < len(self._before) else {}
        now = self.devices[number].serving.statistics(patience=patience)
        return {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}

    def close(self) -> None:
        """End the guest, then the devices."""
        self._stack.close()

    def failed(self, error: BaseException) -> None:
        """Keep the next test from a machine that has died, or in which a driver or a command is stuck."""
        if isinstance(error, MachineError) and not isinstance(error, CommandFailed):
            self.spoiled = self.spoiled or str(error)

    def _told(self, report: Report) -> None:
        """Wait no longer for a guest that hangs. On the thread that reads the console."""
        if report.kind in HANGS and self._booted:
            self.spoiled = self.spoiled or f"of {report.kind} in the test before"
            self.machine.give_up(f"the guest hangs: {report.title}")

    def _let_go(self) -> list[list[str]]:
        """Take the devices from their drivers. The place of each device that had one, and the driver's name."""
        places = " ".join(placed.place for placed in self.devices)
        return [line.split() for line in self._run(LET_GO.format(places=places)).splitlines()]

    def _mark(self, text: str) -> str:
        """Print a line on the guest's console, and wait for it: all that was printed before has come by then."""
        self._marks += 1
        line = f"bellwire {self._marks}: {text}"
        self._run(["sh", "-c", 'echo "<2>$1" >/dev/kmsg', "sh", line])
        self.machine.console.wait_for(line.encode(), PATIENCE)
        return line

    def _run(self, command: str | Sequence[str]) -> str:
        return self.machine.run(command, timeout=PATIENCE, check=True).stdout.decode(errors="replace")


def _kinds(chosen: WantedDevice) -> tuple[type[PciDevice], ...]:
    """The functions of a device: one class, or all of a file that has several."""
    if not isinstance(chosen.kind, str):
        return (chosen.kind,)
    found = find_functions(chosen.kind)
    if chosen.options and len(found) > 1:
        which = ", ".join(f"{chosen.kind}:{number}" for number in range(len(found)))
        raise CommandError(f"{chosen.kind}: which of its functions has the options?", f"name one: {which}")
    return found


def _is(placed: Placed, kind: type[PciDevice]) -> bool:
    return isinstance(placed.serving.device, kind)
