"""A machine that a test drives by hand: QEMU under qtest, with our devices in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellwired.guest.board import memory
from bellwired.guest.qmp import Qmp
from bellwired.guest.toolbox import Toolbox
from qemu import Attachable, attach, qemu
from qtest import Function, Qtest, monitor

# Without the board's own way of hot-plugging, in which the guest's ACPI takes part.
NATIVE_HOT_PLUG = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")
ROOT_PORT = (*NATIVE_HOT_PLUG, "-device", "pcie-root-port,id=root,slot=1")
PCI_EXPRESS, SLOT_CONTROL, POWER_OFF = 0x10, 0x18, 0x0700  # PCI Express 5.0, §7.5.3.10
WINDOW = 0xE000_0000  # for memory BARs
FIRST_SLOT = 1  # QEMU fills the bus from there


class Machine(Qtest):
    """The machine, its functions on bus 0 in the order of the devices, and its control socket."""

    functions: list[Function]
    control: Qmp

    def power_off(self) -> None:
        """Take the power from ROOT_PORT's slot: no guest is asked then before a device leaves it."""
        port = Function(self, FIRST_SLOT)
        port.config_write(port.capability(PCI_EXPRESS) + SLOT_CONTROL, POWER_OFF, 2)

    def plug(self, device: Attachable) -> None:
        """Put a device into that slot."""
        self.control.ask("device_add", bus="root", id="it", **json.loads(device.argument))

    def unplug(self) -> None:
        """Take it out again."""
        self.control.ask("device_del", id="it")


@contextlib.contextmanager
def driven(
    tools: Toolbox,
    folder: Path,
    devices: Sequence[Attachable],
    *arguments: str,
    shared: bool = True,
    place: bool = True,
) -> Iterator[Machine]:
    """A machine with ``devices``, their BARs placed if they are on bus 0; ``arguments`` are more of QEMU's."""
    control = folder / "qmp"
    words = [
        "-accel",
        "qtest",
        "-qtest",
        "stdio",
        "-qtest-log",
        "/dev/null",
        "-qmp",
        f"unix:{control},server=on,wait=off",
    ]
    words += [*memory(128, shared=shared), *arguments, *attach(devices)]
    with qemu(tools, folder, *words, talk=True) as process:
        machine = Machine(process)
        machine.port_in(0x80, 1)  # when it answers, everything is set up
        with contextlib.closing(monitor(control)) as machine.control:
            machine.functions = [Function(machine, slot) for slot in range(FIRST_SLOT, FIRST_SLOT + len(devices))]
            for number, function in enumerate(machine.functions if place else ()):
                function.enable(WINDOW + number * 0x100_0000, 0xC000 + number * 0x1000)
            yield machine
