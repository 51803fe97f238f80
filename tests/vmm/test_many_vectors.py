"""Devices with 2048 MSI-X vectors in our VMM: all can be open at a time, and KVM's limit of routes is no one's end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bellwire import Bar, MsiX, PciDevice
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.machine.gsis import IOAPIC_PINS
from bellwire_vmm.vmm import Machine
from descriptors import make_room
from kvm_ioctls import Capability, Vm
from vfio_user import Client
from vmm.program import LAPIC, VECTOR, VECTORS, Outcome, Program, bar, execute
from vmm.sdk import working

pytestmark = pytest.mark.kvm

MSIX = 0x48  # behind power management
ENABLE, FUNCTION_MASK = 0x8000, 0x4000
COMMAND, BUS_MASTER = 0x04, 7
TABLE = 5
MOST = 2048
LIMIT = 5000  # descriptors: two for each vector, since device and VMM are one process here

Run = Callable[[Program], Outcome]


class Many(PciDevice, vendor=0x1234, device=0x2048, class_code=0x088000):
    irq = MsiX(MOST)
    mmio = Bar(0, size=4096)
    go = mmio.reg(0)

    @go.write
    def interrupt(self, vector: int) -> None:
        self.irq[vector].trigger()


class Few(PciDevice, vendor=0x1234, device=0x0064, class_code=0x088000):
    irq = MsiX(64)
    mmio = Bar(0, size=4096)
    go = mmio.reg(0)

    @go.write
    def interrupt(self, vector: int) -> None:
        self.irq[vector].trigger()


@pytest.fixture
def device(machine: Machine) -> Iterator[ProxyDevice]:
    make_room(LIMIT)
    with ExitStack() as stack:
        yield machine.plug(Client(stack.enter_context(working(Many))))
        machine.close()


def open_all(device: ProxyDevice, count: int) -> Program:
    """What a driver does: it fills the table while the function is masked, and unmasks it then."""
    program = Program().config(device.slot, COMMAND, BUS_MASTER, 2)
    program.config(device.slot, MSIX + 2, ENABLE | FUNCTION_MASK, 2)
    entry = b"\xc7\x02" + LAPIC.to_bytes(4, "little")  # next: mov dword [rdx], LAPIC
    entry += b"\xc7\x42\x04" + bytes(4)  # mov dword [rdx + 4], 0
    entry += b"\x89\x42\x08"  # mov [rdx + 8], eax
    entry += b"\xc7\x42\x0c" + bytes(4)  # mov dword [rdx + 12], 0
    entry += b"\xff\xc0\x24" + bytes([VECTOR | VECTORS - 1])  # inc eax; and al, VECTOR | VECTORS - 1
    entry += b"\x48\x83\xc2\x10\xff\xc9\x75\xdd"  # add rdx, 16; dec ecx; jnz next
    first = b"\x48\xba" + bar(device, TABLE).to_bytes(8, "little")  # mov rdx, table
    program.raw(first + b"\xb9" + count.to_bytes(4, "little") + b"\xb8" + VECTOR.to_bytes(4, "little") + entry)
    return program.config(device.slot, MSIX + 2, ENABLE, 2)


def test_each_of_2048_vectors_interrupts(device: ProxyDevice, run: Run) -> None:
    program = open_all(device, MOST).interrupts()
    for vector in (0, 1, 1023, MOST - 1):
        program.store(bar(device, 0), vector).wait(VECTOR + vector % VECTORS, 1 + (vector == MOST - 1))
    program.count(VECTOR).count(VECTOR + 1).count(VECTOR + 7)
    assert run(program).values == (1, 1, 2)


def test_a_masked_vector_is_pending_at_the_end_of_the_table(device: ProxyDevice, run: Run) -> None:
    table = bar(device, TABLE)
    program = open_all(device, MOST).store(table + 16 * (MOST - 1) + 12, 1).store(bar(device, 0), MOST - 1)
    program.load(bar(device, 0)).load(table + 16 * MOST + MOST // 8 - 8, 8)
    assert run(program).values[1] == 1 << 63


def test_vectors_beyond_kvms_routes_stay_closed_and_the_machine_runs_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    real = Vm.check_extension
    few = {Capability.IRQ_ROUTING: IOAPIC_PINS + 40}
    monkeypatch.setattr(Vm, "check_extension", lambda vm, cap: few.get(cap) or real(vm, cap))
    with caplog.at_level(logging.WARNING), working(Few) as sock, Machine(16 << 20) as machine:
        device = machine.plug(Client(sock))
        program = open_all(device, 64).interrupts().store(bar(device, 0), 0).store(bar(device, 0), 63)
        program.load(bar(device, TABLE) + 16 * 64, 8).wait().count(VECTOR)
        outcome = execute(machine, program, tmp_path)
        assert outcome.values == (1 << 63, 1)
        assert caplog.messages == ["KVM takes 40 routes of messages: further interrupts are never sent"]
