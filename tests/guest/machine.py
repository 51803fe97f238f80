"""A machine that a test drives by hand: QEMU under qtest, with our devices in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellwired.guest.toolbox import Toolbox
from qemu import Attachable, attach, memory, qemu
from qtest import Function, Qmp, Qtest

WINDOW = 0xE000_0000  # for memory BARs
FIRST_SLOT = 1  # QEMU fills the bus from there


class Machine(Qtest):
    """The machine, its functions on bus 0 in the order of the devices, and its control socket."""

    functions: list[Function]
    control: Qmp


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
        with contextlib.closing(Qmp(control)) as machine.control:
            machine.functions = [Function(machine, slot) for slot in range(FIRST_SLOT, FIRST_SLOT + len(devices))]
            for number, function in enumerate(machine.functions if place else ()):
                function.enable(WINDOW + number * 0x100_0000, 0xC000 + number * 0x1000)
            yield machine
