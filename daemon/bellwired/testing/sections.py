"""What the report of a failing test says of its machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bellwire.declare.register import Register

if TYPE_CHECKING:
    from bellwire import PciDevice
    from bellwired.testing.running import Placed, Running
    from bellwired.testing.vm import Vm

CONSOLE = 200  # lines
REGISTERS = 64
PATIENCE = 2.0  # seconds for a device whose hook does not end
Section = tuple[str, str]


def sections(vm: Vm | None, running: Running, lines: int) -> Iterator[Section]:
    """Titles and texts: commands, faults, the kernel's reports, the console; of each device registers and more."""
    if vm is not None and vm.commands:
        yield "commands in the guest", "\n".join(vm.commands)
    if running.struck:
        yield "faults", running.struck
    for report in running.reports():
        yield f"the guest's kernel: {report.kind}", running.decoded(report)
    yield "the guest's console", _last(running.console(), CONSOLE)
    for number, placed in enumerate(running.devices):
        yield f"device {placed.id}: registers", _asked(placed, registers)
        try:
            counts = running.counted(number, PATIENCE)
        except (TimeoutError, RuntimeError) as error:
            yield f"device {placed.id}: counters", str(error)
        else:
            yield f"device {placed.id}: counters", ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"device {placed.id}: {'trace' if running.wanted.trace else 'log'}", placed.trace.last(lines)


def registers(device: PciDevice) -> str:
    """The registers that differ from their values after power-on, by name. No hook runs."""
    lines = []
    for plan in device.layout.bars.values():
        for item in plan.placed:
            if isinstance(item, Register):
                value = item.load(device.storage(plan.bar))
                if value != item.reset:
                    meaning = item.meaning(value)
                    lines.append(f"{item.name} = {value:#x}{f' ({meaning})' if meaning else ''}")
    more = len(lines) - REGISTERS
    return "\n".join(lines[:REGISTERS] + ([f"({more} more)"] if more > 0 else [])) or "all as after power-on"


def _asked(placed: Placed, what: Callable[[PciDevice], str]) -> str:
    try:
        return placed.serving.call(what, placed.serving.device, patience=PATIENCE)
    except (TimeoutError, RuntimeError) as error:
        return str(error)


def _last(text: str, most: int) -> str:
    lines = text.splitlines()
    return "\n".join([*([f"({len(lines) - most} lines before these)"] if len(lines) > most else []), *lines[-most:]])
