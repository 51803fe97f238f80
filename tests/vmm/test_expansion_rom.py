"""Expansion ROMs in our VMM: the guest sizes the register, enables the ROM and reads it, and cannot write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bellwire import Bar, PciDevice, Rom
from bellwire.testing import option_rom
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.rom import Rom as RomBar
from bellwire_vmm.errors import DeviceRefusedError, ZoneRefusedError
from bellwire_vmm.vmm import Machine
from vfio_user import Client, RegionIndex
from vmm.program import Outcome, Program, bar
from vmm.sdk import working

COMMAND, ROM, DEVICE_CONTROL = 0x04, 0x30, 0x08
MEMORY = 2
IMAGE = option_rom(b"\xcb", vendor=0x1234, device=0xB007)
kvm = pytest.mark.kvm

Run = Callable[[Program], Outcome]


class Bootable(PciDevice, vendor=0x1234, device=0xB007, class_code=0x020000):
    mmio = Bar(0, size=4096)
    ident = mmio.reg(0, access="constant", reset=5)
    boot = Rom(IMAGE)


@pytest.fixture
def device(machine: Machine) -> Iterator[ProxyDevice]:
    with ExitStack() as stack:
        yield machine.plug(Client(stack.enter_context(working(Bootable))))
        machine.close()


def home(device: ProxyDevice) -> int:
    return int.from_bytes(device.config_read(ROM, 4), "little")


@kvm
def test_it_has_an_address_and_is_off_at_first(device: ProxyDevice, run: Run) -> None:
    assert home(device) & 0x7FF == 0
    assert home(device) != 0
    assert run(Program().load(home(device))).values == (0xFFFF_FFFF,)


@kvm
def test_a_guest_sizes_enables_and_reads_it(device: ProxyDevice, run: Run) -> None:
    at = home(device)
    program = Program().config(device.slot, ROM, 0xFFFF_F800).read_config(device.slot, ROM)
    program.config(device.slot, ROM, at | 1).read_config(device.slot, ROM).load(at, 2).load(at + 2044)
    assert run(program).values == (0xFFFF_F800, at | 1, 0xAA55, 0xFFFF_FFFF)


@kvm
def test_it_needs_both_enable_bits(device: ProxyDevice, run: Run) -> None:
    at = home(device)
    program = Program().config(device.slot, ROM, at | 1).config(device.slot, COMMAND, 0, 2).load(at, 2)
    program.config(device.slot, COMMAND, MEMORY, 2).load(at, 2).config(device.slot, ROM, at).load(at, 2)
    assert run(program).values == (0xFFFF, 0xAA55, 0xFFFF)


@kvm
def test_a_write_to_it_is_lost(device: ProxyDevice, run: Run) -> None:
    at = home(device)
    program = Program().config(device.slot, ROM, at | 1).store(at, 0).load(at, 2).load(bar(device, 0))
    assert run(program).values == (0xAA55, 5)
    assert device.peer.refused == 0


@kvm
def test_a_function_reset_turns_it_off(device: ProxyDevice, run: Run) -> None:
    at = home(device)
    express = 0x40 + 8  # behind power management
    program = Program().config(device.slot, ROM, at | 1)
    program.config(device.slot, express + DEVICE_CONTROL, 0x8000, 2).read_config(device.slot, ROM)
    assert run(program).values == (0,)


@kvm
def test_writes_to_it_cannot_wait(machine: Machine) -> None:
    with working(Bootable) as sock, machine, pytest.raises(ZoneRefusedError, match="no such memory BAR"):
        machine.plug(Client(sock), coalesced=[(RegionIndex.ROM, 0, 2048)])


@pytest.mark.parametrize("size", [1024, 3072, 32 << 20])
def test_a_size_that_the_register_cannot_express_is_refused(size: int) -> None:
    with pytest.raises(DeviceRefusedError, match=f"{size:#x} bytes: expected"):
        RomBar(size)
