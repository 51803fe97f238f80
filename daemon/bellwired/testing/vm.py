"""The guest that a test gets as ``vm``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast, overload

if TYPE_CHECKING:
    from bellwire import PciDevice
    from bellwired.guest.console import Console
    from bellwired.guest.machine import Finished, Machine
    from bellwired.guest.reports import Report
    from bellwired.testing.running import Running

Device = TypeVar("Device", bound="PciDevice")
_LONGEST = 60  # characters of a command in a report
_KEPT = 100  # commands


class Vm:
    """A Linux guest with the devices that the test's ``@machine`` names, and their driver loaded."""

    def __init__(self, running: Running, timeout: float) -> None:
        self._running = running
        self.timeout = timeout
        """Seconds that a command may take."""
        self._commands: list[str] = []

    def run(
        self, command: str | Sequence[str], *, input: bytes = b"", timeout: float | None = None, check: bool = False
    ) -> Finished:
        """Run a command in the guest, and return its exit status and what it has written.

        A text goes to the guest's shell; a sequence is a program and its arguments. Programs are found in the folder
        of the module and in that of the test, too. With ``check``, another status than 0 raises a CommandFailed. A
        command that takes longer than ``timeout`` seconds (by default :attr:`timeout`) is killed, and raises a
        CommandTimeout. If the guest has died, a MachineError has the end of its console.
        """
        __tracebackhide__ = True
        begun = time.monotonic()
        outcome = "did not end"
        try:
            finished = self.machine.run(
                command, input=input, timeout=self.timeout if timeout is None else timeout, check=check
            )
            outcome = f"signal {finished.signal}" if finished.signal else f"status {finished.status}"
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            said = command if isinstance(command, str) else shlex.join(command)
            short = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
            if len(self._commands) < _KEPT:
                self._commands.append(f"{short}: {outcome}, {time.monotonic() - begun:.2f} s")
        return finished

    @overload
    def device(self, which: type[Device]) -> Device: ...
    @overload
    def device(self, which: str | int = 0) -> PciDevice: ...
    def device(self, which: type[Device] | str | int = 0) -> Device | PciDevice:
        """The live device: of a class, with an ``id``, with its name, or the one with this number in ``devices=``.

        Its registers by name are what the device has stored: no hook runs. See :class:`bellwire.testing.Live`. A
        LookupError if there is no such device, or if there are several.
        """
        return cast("Device", self._running.find(which).serving.live)

    def reset(self, which: type[PciDevice] | str | int = 0) -> None:
        """Reset a device behind the guest's back, as ``bellwire reset`` does: for tests of drivers that must notice."""
        self._running.find(which).serving.reset()

    def reload(self) -> None:
        """Remove the driver, reset the devices, and load the driver again."""
        self._running.unload()
        self._running.reset_devices()
        self._running.load()

    def reboot(self) -> None:
        """Start the guest's kernel again, with its devices, and load the driver.

        The driver that was loaded hears of it, as at any reboot: its ``shutdown`` is called.
        """
        self._running.reboot()

    def unload(self) -> None:
        """Remove the driver's modules."""
        self._running.unload()

    def load(self) -> None:
        """Load the driver's modules."""
        self._running.load()

    @property
    def machine(self) -> Machine:
        """The machine itself: hot plug, modules, its end."""
        return self._running.machine

    @property
    def console(self) -> Console:
        """What the guest's kernel has printed since the boot."""
        return self.machine.console

    def dmesg(self) -> str:
        """What the guest's kernel has printed since the test began."""
        return self._running.printed()

    @property
    def reports(self) -> list[Report]:
        """The kernel's reports since the test began: oopses, warnings, hung tasks and the like."""
        return self._running.reports()

    @property
    def commands(self) -> list[str]:
        """The commands that the test has run, and how each ended."""
        return list(self._commands)
