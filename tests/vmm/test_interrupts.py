"""A device's interrupts, into a guest on real KVM: by message, by table, by pin."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.vectors import Vector
from bellwire_vmm.vmm import Machine
from vfio_user import Client
from vmm import toy
from vmm.program import LAPIC, VECTOR, Outcome, Program, bar
from vmm.toy import MSI_AT, MSIX_AT, Toy

pytestmark = pytest.mark.kvm

Plug = Callable[[Toy], ProxyDevice]
Run = Callable[[Program], Outcome]

ENABLE, FUNCTION_MASK = 0x8000, 0x4000
MASKED = 1


def msix(device: ProxyDevice, *, vectors: int = 2, control: int = ENABLE, masked: int = 0) -> Program:
    """A guest that has filled the first entries of the table, and set Message Control."""
    program = Program().interrupts()
    for number in range(vectors):
        at = bar(device, 4) + toy.TABLE + 16 * number
        program.store(at, LAPIC, 8).store(at + 8, VECTOR + number).store(at + 12, masked)
    return program.config(device.slot, MSIX_AT + 2, control, 2)


def raise_now(program: Program, device: ProxyDevice, vector: int = 0) -> Program:
    """The device triggers a vector; when the read comes back, it has."""
    return program.store(bar(device, 0) + toy.IRQ_NOW, vector).load(bar(device, 0))


def test_msix_vectors_reach_the_handlers_that_the_table_names(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    program = msix(device)
    raise_now(program, device, 1).wait(VECTOR + 1)
    raise_now(program, device, 0).wait(VECTOR)
    raise_now(program, device, 1).wait(VECTOR + 1, 2)
    assert run(program.count(VECTOR).count(VECTOR + 1)).values[-2:] == (1, 2)


def test_a_ring_comes_back_as_an_interrupt_with_no_exit_at_all(plug: Plug, run: Run) -> None:
    device = plug(Toy("wildcard"))
    program = msix(device).store(bar(device, 0) + toy.IRQ_ON_RING, 1).load(bar(device, 0)).mark(1)
    for times in range(1, 11):
        program.store(bar(device, 1) + toy.WILDCARD, 0).wait(VECTOR, times)
    assert run(program.mark(2)).exits(1, 2) == (0, 0)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_has_an_eventfd_block_holds_no_vector_up(machine: Machine) -> None:
    vector = Vector(machine.platform)
    os.set_blocking(vector.eventfd, True)
    vector.set(LAPIC, VECTOR, True)
    vector.close()


@pytest.mark.parametrize(("control", "masked"), [(ENABLE, MASKED), (ENABLE | FUNCTION_MASK, 0)])
def test_a_masked_vector_is_pending_until_it_is_unmasked(plug: Plug, run: Run, control: int, masked: int) -> None:
    device = plug(Toy())
    program = raise_now(msix(device, control=control, masked=masked), device)
    program.count().load(bar(device, 4) + toy.PENDING, 8)
    if masked:
        program.store(bar(device, 4) + toy.TABLE + 12, 0)
    else:
        program.config(device.slot, MSIX_AT + 2, ENABLE, 2)
    program.wait().count().load(bar(device, 4) + toy.PENDING, 8)
    assert run(program).values[1:] == (0, 1, 1, 0)


def test_a_vector_masked_while_on_keeps_what_comes(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    mask = bar(device, 4) + toy.TABLE + 12
    program = raise_now(msix(device), device).wait().store(mask, MASKED)
    raise_now(raise_now(program, device), device).count().store(mask, 0).wait(times=2)
    assert run(program.count()).values[-2:] == (1, 2)


def test_an_entry_can_be_pointed_elsewhere(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    program = raise_now(msix(device), device).wait()
    program.store(bar(device, 4) + toy.TABLE + 8, VECTOR + 5)
    assert run(raise_now(program, device).wait(VECTOR + 5).count()).values[-1] == 1


def test_the_table_reads_as_written_and_never_reaches_the_device(plug: Plug, run: Run) -> None:
    device = plug(served := Toy())
    at = bar(device, 4) + toy.TABLE
    program = (
        Program().load(at + 12).store(at, 0xFEE0_1000).store(at + 4, 0).store(at + 8, 0x41).store(at + 12, 0xFFFF_FFFF)
    )
    program.load(at, 8).load(at + 8).load(at + 12).load(at + 16 * toy.VECTORS)
    assert run(program).values == (MASKED, 0xFEE0_1000, 0x41, MASKED, 0)
    assert not [message for message in served.messages if message[0] == 4]


def test_msi_interrupts(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    program = Program().interrupts().config(device.slot, MSI_AT + 4, LAPIC).config(device.slot, MSI_AT + 8, 0)
    program.config(device.slot, MSI_AT + 12, VECTOR + 2, 2).config(device.slot, MSI_AT + 2, 1, 2)
    raise_now(program, device).wait(VECTOR + 2)
    raise_now(program, device).wait(VECTOR + 2, 2)
    program.config(device.slot, MSI_AT + 2, 0, 2)
    raise_now(program, device).count(VECTOR + 2)
    assert run(program).values[-1] == 2


def intx(device: ProxyDevice) -> Program:
    """A guest that listens to the device's pin."""
    return Program().interrupts().route(device.config_read(0x3C, 1)[0])


def test_a_pin_interrupts_for_as_long_as_the_device_asserts_it(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    level = bar(device, 0) + toy.LEVEL
    program = intx(device).store(level, 1).wait(times=5)
    assert run(program.store(level, 0).load(level).count()).values[-1] >= 5


def test_a_pin_deasserted_is_quiet_until_it_is_asserted_again(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    level = bar(device, 0) + toy.LEVEL
    program = intx(device).store(level, 1).wait().store(level, 0).load(level)
    for _ in range(50):
        program.breathe().load(level)
    program.count().store(level, 1).wait(times=5)
    assert run(program).values[-1] < 25  # some may be on their way; asserted, the line would have come 50 times


def test_pins_rotate_over_four_lines(machine: Machine, serve: Callable[[Toy], Client]) -> None:
    devices = [machine.plug(serve(Toy())) for _ in range(5)]
    assert [device.config_read(0x3C, 1)[0] for device in devices] == [17, 18, 19, 16, 17]


def test_two_devices_share_a_line(machine: Machine, serve: Callable[[Toy], Client], run: Run) -> None:
    devices = [machine.plug(serve(Toy())) for _ in range(5)]
    for device in (devices[0], devices[4]):
        level = bar(device, 0) + toy.LEVEL
        program = intx(device).store(level, 1).wait(times=2).store(level, 0).load(level)
        assert run(program).run.ok


def test_a_device_without_a_pin_has_no_line(plug: Plug) -> None:
    assert plug(Toy(pin=0)).config_read(0x3C, 1) == b"\xff"


def test_msix_turned_off_gives_the_pin_back(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    level = bar(device, 0) + toy.LEVEL
    program = raise_now(msix(device), device).wait().config(device.slot, MSIX_AT + 2, 0, 2)
    program.route(device.config_read(0x3C, 1)[0], VECTOR + 3)
    assert run(program.store(level, 1).wait(VECTOR + 3).store(level, 0).load(level).count()).values[-1] == 1


def test_a_reset_silences_msix(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    assert run(raise_now(msix(device), device).wait()).run.ok
    device.reset()
    assert run(raise_now(Program().interrupts(), device).count()).values[-1] == 0
    assert run(raise_now(msix(device), device).wait()).run.ok
