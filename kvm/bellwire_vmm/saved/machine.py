"""A whole machine but for its RAM: what it must look like to take a state, and that state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import StateError, VmmError
from bellwire_vmm.saved import devices
from bellwire_vmm.saved.processor import ProcessorState, section, structure
from bellwire_vmm.vmm import Machine
from kvm_ioctls import ClockData, Irqchip, IrqchipState, Kvm, KvmError

_CONTROLLERS = {
    "first pic": Irqchip.PIC_MASTER,
    "second pic": Irqchip.PIC_SLAVE,
    "ioapic": Irqchip.IOAPIC,
}
_CLOCK = "clock"

Shape = dict[str, Any]


def shape_of(machine: Machine) -> Shape:
    """What a machine must have to take the state of ``machine``, in values that JSON knows."""
    return {
        "memory": machine.memory.size,
        "cpus": len(machine.processors),
        "cpuid": [list(astuple(leaf)) for leaf in machine.cpuid],
        "tsc_khz": _tsc_khz(machine),
        "parts": sorted(machine.parts),
        "devices": {str(device.slot): device.identity for device in machine.devices},
    }


def check(machine: Machine, wanted: Mapping[str, Any]) -> None:
    """Raise StateError, saying what differs, if ``machine`` cannot take a state from a machine of shape ``wanted``."""
    have = shape_of(machine)
    for name in ("memory", "cpus", "parts"):
        if have[name] != wanted.get(name):
            raise StateError(f"{name}: the state is of a machine with {wanted.get(name)}, this one has {have[name]}")
    _check_cpuid(have["cpuid"], wanted.get("cpuid"))
    _check_devices(have["devices"], wanted.get("devices"))
    if have["tsc_khz"] != wanted.get("tsc_khz"):
        _scale(machine, wanted["tsc_khz"], have["tsc_khz"])


def take(machine: Machine) -> dict[str, bytes]:
    """The state of a stopped machine, whose devices have stopped too. Raises StateError if it cannot be taken."""
    with Kvm.open() as kvm:
        indices = kvm.msr_index_list()
    found: dict[str, bytes] = {}
    try:
        for processor in machine.processors:
            state = ProcessorState.of(processor.vcpu, indices)
            found |= state.pack(f"cpu{processor.number}")
        found |= {name: bytes(machine.vm.get_irqchip(chip)) for name, chip in _CONTROLLERS.items()}
        found[_CLOCK] = bytes(machine.vm.get_clock())
        found |= {_part(name): part.state() for name, part in machine.parts.items()}
        for device in machine.devices:
            found[_setup(device)] = device.state()
            found[_data(device)] = devices.read(device)
    except KvmError as error:
        raise StateError(f"KVM does not tell the machine's state: {error}") from None
    return found


def give(machine: Machine, sections: Mapping[str, bytes]) -> None:
    """Give a new machine a state. Its shape has been checked, and its RAM is there.

    Then `devices.start` starts its devices, and `Machine.resume` the guest. Raises StateError for sections that are
    missing or malformed, before anything is set, and for what KVM refuses.
    """
    processors = [ProcessorState.unpack(f"cpu{each.number}", sections) for each in machine.processors]
    controllers = [structure(IrqchipState, name, sections) for name in _CONTROLLERS]
    for (name, chip), state in zip(_CONTROLLERS.items(), controllers, strict=True):
        if state.chip_id != chip:
            raise StateError(f"section {name!r} is of interrupt controller {state.chip_id}, expected {int(chip)}")
    clock = structure(ClockData, _CLOCK, sections)
    parts = {name: section(_part(name), sections) for name in machine.parts}
    plugged = [(each, section(_data(each), sections), section(_setup(each), sections)) for each in machine.devices]
    for processor, cpu in zip(machine.processors, processors, strict=True):
        cpu.give(processor.vcpu)
    # Parts set their interrupt lines to the level that the controllers' own states have, so these come afterwards: a
    # line that rises later would be one more interrupt.
    for name, part in machine.parts.items():
        part.set_state(parts[name])
    try:
        for state in controllers:
            machine.vm.set_irqchip(state)
        machine.vm.set_clock(clock.clock)
    except KvmError as error:
        raise StateError(f"KVM does not take the machine's state: {error}") from None
    # Devices come last: an interrupt that one sends now must find the controllers as they will be.
    for device, data, setup in plugged:
        devices.write(device, data)
        device.set_state(setup)


def to_json(shape: Shape) -> bytes:
    """A shape as JSON."""
    return json.dumps(shape, separators=(",", ":")).encode()


def from_json(data: bytes | bytearray) -> Shape:
    """Undo `to_json`. Raises StateError for anything else."""
    try:
        shape = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError(f"the description of the machine is no JSON: {error}") from None
    if not isinstance(shape, dict):
        raise StateError("the description of the machine is no JSON object")
    for name in ("memory", "cpus", "tsc_khz"):
        if type(number := shape.get(name)) is not int or not 0 <= number < 1 << 32:
            raise StateError(f"the description of the machine has no number below 2^32 for {name!r}")
    return shape


def _setup(device: ProxyDevice) -> str:
    return f"slot {device.slot} setup"


def _data(device: ProxyDevice) -> str:
    return f"slot {device.slot} data"


def _part(name: str) -> str:
    return f"part {name}"


def _tsc_khz(machine: Machine) -> int:
    try:
        return machine.tsc_khz
    except VmmError:
        return 0  # the host's clock is not stable


def _scale(machine: Machine, wanted: int, have: int) -> None:
    """Let the guest's time stamp counters run as fast as before."""
    try:
        for processor in machine.processors:
            processor.vcpu.set_tsc_khz(wanted)
    except KvmError:
        raise StateError(
            f"time stamp counter: it ran at {wanted} kHz; here it runs at {have} kHz, and KVM cannot scale it"
        ) from None


def _check_cpuid(have: list[list[int]], wanted: Any) -> None:
    before = wanted if isinstance(wanted, list) else []
    for leaf in have:
        if leaf not in before:
            raise StateError(f"CPUID leaf {leaf[0]:#x}.{leaf[1]}: the state is of a machine with other processors")
    if len(before) != len(have):
        raise StateError("CPUID: the state is of a machine whose processors have more leaves")


def _check_devices(have: dict[str, Any], wanted: Any) -> None:
    if not isinstance(wanted, dict):
        raise StateError("devices: the description of the machine is malformed")
    for slot in sorted({*have, *wanted}, key=lambda slot: (len(slot), slot)):
        before, here = wanted.get(slot), have.get(slot)
        if before is None:
            raise StateError(f"slot {slot} was empty, and is {_named(here)} here: plug in what the machine had")
        if here is None:
            raise StateError(f"slot {slot} is empty here, and was {_named(before)}: plug in what the machine had")
        if before != here:
            names = [name for name in here if not isinstance(before, dict) or before.get(name) != here[name]]
            raise StateError(
                f"slot {slot} is {_named(here)} here, and was {_named(before)}: they differ in {', '.join(names)}"
            )


def _named(identity: Any) -> str:
    """A device, for a message."""
    return str(identity.get("id", "a device")) if isinstance(identity, dict) else "a device"
