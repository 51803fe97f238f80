"""Config space: identity, capabilities, bus mastering, function-level reset, MSI-X masks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import Bar, GuestError, IntX, Msi, MsiX, PciDevice
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance
from vfio_user import IrqIndex, RegionIndex


class Card(
    PciDevice,
    vendor=0x1AB4,
    device=0x0042,
    class_code=0x020000,
    revision=7,
    subsystem=(0x1111, 0x2222),
    name="card",
):
    irq = MsiX(3)
    line = IntX()
    memory = Bar(0, size=1 << 20, bits=64, prefetchable=True)
    ports = Bar(2, size=32, io=True)
    one = memory.reg(0, reset=5)


class Old(PciDevice, vendor=2, device=1, class_code=1, express=False, name="old-card"):
    msi = Msi(4)
    line = IntX(pin=2)


class WithAreas(PciDevice, vendor=2, device=1, class_code=1, name="with-areas"):
    mmio = Bar(0, size=16384)
    one = mmio.reg(0)
    frame = mmio.area(8192, 4096)


TestCard = conformance(Card)
TestOld = conformance(Old)
TestWithAreas = conformance(WithAreas)


@pytest.fixture
def guest() -> Iterator[Guest[Card]]:
    with Guest(Card) as guest:
        yield guest


def card(guest: Guest[Card]) -> Card:
    assert isinstance(guest.device, Card)
    return guest.device


def test_the_header_says_who_the_device_is(guest: Guest[Card]) -> None:
    assert guest.config_read(0x00, 4) == 0x0042_1AB4
    assert guest.config_read(0x08, 4) == 0x0200_0007
    assert guest.config_read(0x2C, 4) == 0x2222_1111
    assert guest.config_read(0x3D, 1) == 1


def test_bars_say_their_kind(guest: Guest[Card]) -> None:
    assert guest.config_read(0x10, 4) == 0b1100
    assert guest.config_read(0x14, 4) == 0
    assert guest.config_read(0x18, 4) == 0b01


def test_msix_gets_the_last_free_bar_for_its_table(guest: Guest[Card]) -> None:
    at = guest.device.core.config.at[pci.MSIX]
    assert guest.config_read(at + 2, 2) & 0x7FF == 2
    assert guest.config_read(at + 4, 4) == 5
    assert guest.config_read(at + 8, 4) == 0x30 | 5


def test_a_conventional_device_has_256_bytes_and_no_express_capability() -> None:
    with Guest(Old) as guest:
        assert guest.device.core.region_size(RegionIndex.CONFIG) == 256
        assert set(guest.device.core.config.at) == {pci.POWER_MANAGEMENT, pci.MSI}
        assert guest.config_read(0x3D, 1) == 2
        assert guest.config_read(guest.device.core.config.at[pci.MSI] + 2, 2) == 0x00A5  # the guest wants all four


def test_an_express_device_has_4096_bytes(guest: Guest[Card]) -> None:
    assert guest.device.core.region_size(RegionIndex.CONFIG) == 4096


def test_dma_is_refused_while_bus_mastering_is_off(guest: Guest[Card]) -> None:
    guest.config_write(pci.COMMAND, 0, 2)
    with pytest.raises(GuestError, match="bus mastering off"):
        guest.device.dma.read(0, 4)


def test_msix_is_refused_while_bus_mastering_is_off(guest: Guest[Card]) -> None:
    guest.config_write(pci.COMMAND, 0, 2)
    with pytest.raises(GuestError, match="bus mastering off"):
        card(guest).irq[0].trigger()
    assert not guest.interrupts


def test_function_level_reset_resets_registers_and_config(guest: Guest[Card]) -> None:
    guest.write(Card.one, 99)
    control = guest.device.core.config.at[pci.EXPRESS] + 8
    guest.config_write(control, guest.config_read(control, 2) | pci.FUNCTION_LEVEL_RESET, 2)
    assert guest.read(Card.one) == 5
    assert guest.config_read(pci.COMMAND, 2) == 0
    assert guest.config_read(control, 2) == 0x2810


def test_power_state_can_be_set(guest: Guest[Card]) -> None:
    control = guest.device.core.config.at[pci.POWER_MANAGEMENT] + 4
    guest.config_write(control, 3, 2)
    assert guest.config_read(control, 2) == 0x000B
    for optional in (1, 2):
        guest.config_write(control, optional, 2)
        assert guest.config_read(control, 2) == 0x000B
    guest.config_write(control, 0, 2)
    assert guest.config_read(control, 2) == 0x0008


def test_msix_delivers(guest: Guest[Card]) -> None:
    card(guest).irq[2].trigger()
    assert guest.interrupts == {(IrqIndex.MSIX, 2): 1}


def test_msix_that_is_off_is_pending_until_it_is_on(guest: Guest[Card]) -> None:
    control = guest.device.core.config.at[pci.MSIX] + 2
    guest.config_write(control, 0, 2)
    card(guest).irq[1].trigger()
    assert not guest.interrupts
    guest.config_write(control, 0x8000, 2)
    assert guest.interrupts == {(IrqIndex.MSIX, 1): 1}


def test_a_guest_hears_only_the_messages_that_it_has_turned_on() -> None:
    with Guest(Old) as guest:
        device = guest.device
        assert isinstance(device, Old)
        control = guest.device.core.config.at[pci.MSI] + 2
        device.msi[3].trigger()
        guest.config_write(control, 0x0011, 2)  # two of the four
        for number in (1, 2):
            device.msi[number].trigger()
        guest.config_write(control, 0x0020, 2)
        device.msi[0].trigger()
        assert guest.interrupts == {(IrqIndex.MSI, 3): 1, (IrqIndex.MSI, 1): 1}


def test_a_masked_function_leaves_msix_pending_until_unmasked(guest: Guest[Card]) -> None:
    control = guest.device.core.config.at[pci.MSIX] + 2
    guest.config_write(control, 0xC000, 2)
    card(guest).irq[1].trigger()
    assert not guest.interrupts
    assert guest.read(5, 0x30, 8) == 0b010
    guest.config_write(control, 0x8000, 2)
    assert guest.interrupts == {(IrqIndex.MSIX, 1): 1}
    assert guest.read(5, 0x30, 8) == 0


def test_a_table_that_the_guest_writes_here_masks_vectors(guest: Guest[Card]) -> None:
    guest.write(5, 0, offset=0x0C, size=4)  # vector 0 unmasked; 1 and 2 stay masked
    card(guest).irq[0].trigger()
    card(guest).irq[1].trigger()
    assert guest.interrupts == {(IrqIndex.MSIX, 0): 1}
    guest.write(5, 0, offset=0x1C, size=4)
    assert guest.interrupts == {(IrqIndex.MSIX, 0): 1, (IrqIndex.MSIX, 1): 1}


def test_msix_table_entries_keep_what_is_written(guest: Guest[Card]) -> None:
    guest.write(5, 0xFEE0_1000_0000_0041, offset=16, size=8)
    assert guest.read(5, 16, 8) == 0xFEE0_1000_0000_0041
    guest.write(5, 0xFF, offset=17, size=1)
    assert guest.read(5, 16, 8) == 0xFEE0_1000_0000_0041


def test_intx_follows_the_device_and_the_command_register(guest: Guest[Card]) -> None:
    at = guest.device.core.config.at[pci.MSIX] + 2
    guest.config_write(at, 0, 2)
    card(guest).line.high()
    assert guest.line
    assert guest.config_read(pci.STATUS, 2) & pci.STATUS_INTERRUPT
    guest.config_write(pci.COMMAND, pci.BUS_MASTER | pci.INTX_DISABLE, 2)
    assert not guest.line
    assert guest.config_read(pci.STATUS, 2) & pci.STATUS_INTERRUPT
    guest.config_write(pci.COMMAND, pci.BUS_MASTER, 2)
    assert guest.line
    card(guest).line.low()
    assert not guest.line


def test_intx_is_silent_while_msix_is_enabled(guest: Guest[Card]) -> None:
    card(guest).line.high()
    assert not guest.line


def test_an_area_is_shared_memory() -> None:
    with Guest(WithAreas) as guest:
        guest.write(0, 0x1234, offset=8192 + 100, size=2)
        frame = guest.device.frame
        assert bytes(frame[100:102]) == b"\x34\x12"
        frame[0] = 0x77
        assert guest.read(0, 8192, 1) == 0x77


# -- power states (PM 1.2 §3.2.4)


class Forgetful(PciDevice, vendor=2, device=2, class_code=1, no_soft_reset=False, name="forgetful"):
    mmio = Bar(0, size=16)
    one = mmio.reg(0, reset=5)


class StillForgetful(Forgetful, device=3, name="still-forgetful"):
    pass


class Reminded(Forgetful, device=4, no_soft_reset=True, name="reminded"):
    pass


TestForgetful = conformance(Forgetful)


@pytest.mark.parametrize(
    ("kind", "kept"), [(Card, True), (Old, True), (Forgetful, False), (StillForgetful, False), (Reminded, True)]
)
def test_a_device_that_is_woken_from_d3hot_does_what_no_soft_reset_says(kind: type[PciDevice], kept: bool) -> None:
    with Guest(kind) as guest:
        control = guest.device.core.config.at[pci.POWER_MANAGEMENT] + 4
        assert bool(guest.config_read(control, 2) & pci.NO_SOFT_RESET) is kept
        before, command = guest.device.core.snapshot(), guest.config_read(pci.COMMAND, 2)
        guest.config_write(control, 3, 2)
        assert guest.config_read(control, 2) & 3 == 3
        guest.config_write(control, 0, 2)
        assert guest.config_read(control, 2) & 3 == 0
        assert (guest.device.core.snapshot() == before) is kept
        assert guest.config_read(pci.COMMAND, 2) == (command if kept else 0)


def test_a_write_that_leaves_the_power_state_alone_resets_nothing() -> None:
    with Guest(Forgetful) as guest:
        control = guest.device.core.config.at[pci.POWER_MANAGEMENT] + 4
        guest.write(Forgetful.one, 9)
        for value in (0, 3, 3, 1, 2):  # D1 and D2 are not entered
            guest.config_write(control, value, 2)
            assert guest.read(Forgetful.one) == 9
        guest.config_write(control, 0, 2)
        assert guest.read(Forgetful.one) == 5
