"""A test suite for any device, in one line: ``TestCopier = conformance(Copier)``."""

from __future__ import annotations

import random
from typing import Any

from bellwire.declare.capability import END, START
from bellwire.declare.functions import functions_of
from bellwire.declare.register import Register
from bellwire.declare.rom_image import images
from bellwire.declare.vendor import HEADER
from bellwire.device import PciDevice
from bellwire.errors import GuestError
from bellwire.model import capabilities as pci
from bellwire.pci.data_objects import Doe
from bellwire.pci.resizable_bar import ResizableBars
from bellwire.testing.guest import Guest
from vfio_user import RegionIndex

ACCESSES = 2000
SEED = 0xBE11
_WIDTHS = (1, 2, 4, 8)


def conformance(device: type[PciDevice], **options: Any) -> type[Any]:
    """A class of tests for pytest: they check on ``device(**options)`` what every PCI device must do."""

    class Conformance:
        __doc__ = f"What every PCI device must do, tried on {device.name}."

        def guest(self) -> Guest[Any]:
            return Guest(device, **options)

        def test_reset_is_idempotent(self) -> None:
            with self.guest() as guest:
                core = guest.device.core
                core.reset()
                once = core.snapshot()
                disturb(guest, random.Random(SEED))
                core.power_on()  # what a reset leaves alone: sticky bits
                core.reset()
                assert core.snapshot() == once, "a reset does not lead back to the state after reset"
                core.reset()
                assert core.snapshot() == once

        def test_a_snapshot_brings_the_state_back(self) -> None:
            with self.guest() as guest:
                core = guest.device.core
                disturb(guest, random.Random(SEED))
                before = core.snapshot()
                disturb(guest, random.Random(SEED + 1))
                core.restore(before)
                assert core.snapshot() == before

        def test_random_accesses_raise_nothing_but_guest_errors(self) -> None:
            with self.guest() as guest:
                disturb(guest, random.Random(SEED + 2))

        def test_registers_start_at_their_reset_values(self) -> None:
            with self.guest() as guest:
                for plan in device.layout.bars.values():
                    for item in plan.placed:
                        if isinstance(item, Register) and ("read", item) not in device.layout.hooks:
                            stored = item.load(guest.device.core.state.registers[plan.bar.index])
                            assert stored == item.reset, f"{item.name} is {stored:#x} after reset"

        def test_bars_report_their_size(self) -> None:
            with self.guest() as guest:
                check_bars(guest)

        def test_capabilities_form_a_list_that_ends(self) -> None:
            with self.guest() as guest:
                check_capabilities(guest)

        def test_extended_capabilities_form_a_list_that_ends(self) -> None:
            with self.guest() as guest:
                check_extended(guest)

        def test_bars_can_be_resized(self) -> None:
            with self.guest() as guest:
                check_resizable(guest)

        def test_mailboxes_list_their_protocols(self) -> None:
            with self.guest() as guest:
                check_mailboxes(guest)

        def test_a_reset_keeps_sticky_bits_and_no_others(self) -> None:
            with self.guest() as guest:
                check_sticky(guest)

        def test_the_expansion_rom_is_read_only_and_one_that_firmware_accepts(self) -> None:
            with self.guest() as guest:
                check_rom(guest)

        def test_the_header_says_whether_there_are_several_functions(self) -> None:
            with self.guest() as guest:
                several = len(functions_of(device)) > 1
                assert guest.config_read(pci.HEADER_TYPE, 1) == (pci.MULTIFUNCTION if several else 0)

        def test_d3hot_is_survived_if_no_soft_reset_says_so(self) -> None:
            with self.guest() as guest:
                core = guest.device.core
                control = core.config.at[pci.POWER_MANAGEMENT] + 4
                core.reset()
                fresh = core.snapshot()
                disturb(guest, random.Random(SEED))
                core.power_on()
                guest.config_write(control, 0, 2)
                before = core.snapshot()
                guest.config_write(control, 3, 2)
                guest.config_write(control, 0, 2)
                kept = guest.config_read(control, 2) & pci.NO_SOFT_RESET
                assert core.snapshot() == (before if kept else fresh), "D3hot did not do what No_Soft_Reset says"

        def test_identity_is_read_only(self) -> None:
            with self.guest() as guest:
                for offset, size in ((0x00, 4), (0x08, 4), (0x0E, 1), (0x2C, 4), (0x34, 1), (0x3D, 1)):
                    before = guest.config_read(offset, size)
                    guest.config_write(offset, ~before, size)
                    assert guest.config_read(offset, size) == before, f"config {offset:#x} took a write"

    Conformance.__name__ = Conformance.__qualname__ = f"Conformance[{device.name}]"
    return Conformance


def disturb(guest: Guest[Any], chance: random.Random) -> None:
    """Do what a guest can do, at random: accesses of every width, rings, time. GuestErrors are expected and ignored."""
    layout = guest.device.layout
    bells = layout.doorbells
    indices = [*layout.bars, RegionIndex.CONFIG]
    spots = {
        index: [item.offset for item in layout.bars[index].placed] if index in layout.bars else [pci.COMMAND]
        for index in indices
    }
    spots[RegionIndex.CONFIG] += [each.at + item.offset for each in layout.extended for item in each.placed]
    for _ in range(ACCESSES):
        index = chance.choice(indices)
        size = guest.device.core.region_size(index)
        width = chance.choice([width for width in _WIDTHS if width <= size])
        near = chance.choice(spots[index]) if spots[index] and chance.random() < 0.8 else chance.randrange(size)
        offset = min(max(0, near + chance.randint(-2, 8)), size - width)
        try:
            if chance.random() < 0.5:
                guest.read(index, offset, width)
            else:
                guest.write(index, chance.getrandbits(64), offset=offset, size=width)
            if bells and chance.random() < 0.1:
                bell = chance.choice(bells)
                guest.ring(bell, chance.getrandbits(32) if bell.values is None else chance.choice(bell.values))
            if chance.random() < 0.05:
                guest.advance(1.0)
        except GuestError:
            continue


def check_bars(guest: Guest[Any]) -> None:
    """Write all ones to each BAR, check the size that it reports (PCI 3.0 §6.2.5.1), and restore its address."""
    for index, plan in guest.device.layout.bars.items():
        bar = plan.bar
        offset, width = pci.BAR0 + 4 * index, bar.bits // 8
        before = guest.config_read(offset, width)
        guest.config_write(offset, (1 << bar.bits) - 1, width)
        answer = guest.config_read(offset, width)
        flags = 0b11 if bar.io else 0b1111
        size = (~(answer & ~flags) & ((1 << bar.bits) - 1)) + 1
        expected = guest.device.core.region_size(index)
        assert size == expected, f"BAR {index} says {size:#x} bytes, {bar.name} has {expected:#x}"
        guest.config_write(offset, before, width)
        assert guest.config_read(offset, width) == before


def check_rom(guest: Guest[Any]) -> None:
    """Size the ROM's BAR, as firmware does (PCI 3.0 §6.2.5.2), try to change the ROM, and look at its images."""
    size = guest.device.core.region_size(RegionIndex.ROM)
    before = guest.config_read(pci.ROM_BAR, 4)
    guest.config_write(pci.ROM_BAR, 0xFFFF_FFFF, 4)
    answer = guest.config_read(pci.ROM_BAR, 4)
    guest.config_write(pci.ROM_BAR, before, 4)
    assert guest.config_read(pci.ROM_BAR, 4) == before
    if not size:
        assert answer == 0, f"its ROM's BAR says {answer:#x}, and it has no ROM"
        return
    assert answer == -size & pci.ROM_ADDRESS | pci.ROM_ENABLE, f"its ROM's BAR says {answer:#x}; it has {size:#x} bytes"
    content = guest.device.core.read(RegionIndex.ROM, 0, size)
    guest.write(RegionIndex.ROM, ~content[0], offset=0, size=1)
    assert guest.device.core.read(RegionIndex.ROM, 0, size) == content, "its ROM took a write"
    assert images(content)


def check_capabilities(guest: Guest[Any]) -> None:
    """The list starts at 34h, lies on dwords outside the header, has no circle and ends with zero (PCI 3.0 §6.7)."""
    assert guest.config_read(pci.STATUS, 2) & pci.STATUS_CAPABILITIES
    seen: set[int] = set()
    at = guest.config_read(pci.CAPABILITY_POINTER, 1)
    while at:
        assert at >= pci.FIRST_CAPABILITY, f"capability at {at:#x}, inside the header"
        assert at % 4 == 0, f"capability at {at:#x}, off a dword"
        assert at not in seen, f"the list runs in a circle at {at:#x}"
        seen.add(at)
        at = guest.config_read(at + 1, 1)
    config = guest.device.core.config
    assert seen == {*config.at.values(), *(body - HEADER for body in config.vendor.values())}


def check_extended(guest: Guest[Any]) -> None:
    """The list starts at 100h, lies on dwords, has no circle, ends with zero, and is read-only (PCIe 6.0 §7.6.3)."""
    layout = guest.device.layout
    if not guest.device.core.identity.express:
        assert not layout.extended
        return
    seen: dict[int, int] = {}
    at = START if layout.extended else 0
    while at:
        assert START <= at < END, f"extended capability at {at:#x}, outside extended config space"
        assert at % 4 == 0, f"extended capability at {at:#x}, off a dword"
        assert at not in seen, f"the list runs in a circle at {at:#x}"
        seen[at] = guest.config_read(at, 4)
        guest.config_write(at, ~seen[at], 4)
        assert guest.config_read(at, 4) == seen[at], f"the header at {at:#x} took a write"
        at = seen[at] >> 20
    assert {at: header & 0xFFFF for at, header in seen.items()} == {
        each.at: each.capability.number for each in layout.extended
    }


def check_sticky(guest: Guest[Any]) -> None:
    """After a reset a register of an extended capability has its reset value, or what it had if it is sticky (§7.4)."""
    core = guest.device.core
    if not core.layout.extended:
        return
    disturb(guest, random.Random(SEED + 3))
    files = core.state.registers
    before = {item: item.load(files[each.capability]) for each in core.layout.extended for item in each.placed}
    core.config.reset()
    for item, value in before.items():
        after = item.load(files[item.bar.index])
        expected = value if item.sticky else item.reset
        assert after == expected, f"{item.name} is {after:#x} after a reset, not {expected:#x}"


def check_resizable(guest: Guest[Any]) -> None:
    """Each BAR takes each size that its Resizable BAR capability offers, and then reports it (PCIe 6.0 §7.8.6)."""
    for each in guest.device.layout.extended:
        if isinstance(each.capability, ResizableBars):
            for bar, control in each.capability.controls.items():
                able = guest.config_read(each.at + control.offset - 4, 4) >> 4
                codes = [code for code in range(28) if able >> code & 1]
                for code in codes:
                    guest.write(control, code << 8)
                    assert guest.device.core.region_size(bar.index) == 1 << 20 + code
                    check_bars(guest)
                guest.write(control, control.reset)


def check_mailboxes(guest: Guest[Any]) -> None:
    """Discovery lists each protocol of a mailbox once, itself first, and ends (PCIe 6.0 §6.30.1.1)."""
    for each in guest.device.layout.extended:
        if isinstance(each.capability, Doe):
            mailbox, found, index = each.capability, [], 0
            while True:
                for word in (0x0001, 3, index):
                    guest.write(mailbox.outbox, word)
                guest.write(mailbox.control, 1 << 31)
                assert guest.read(mailbox.status) >> 31, f"{mailbox.name} does not answer discovery of {index}"
                answer = []
                for _ in range(3):
                    answer.append(guest.read(mailbox.inbox))
                    guest.write(mailbox.inbox, 0)
                assert not guest.read(mailbox.status) >> 31, f"{mailbox.name} has more than an answer"
                found.append((answer[2] & 0xFFFF, answer[2] >> 16 & 0xFF))
                assert len(found) <= len(mailbox.protocols), f"the protocols of {mailbox.name} have no end"
                index = answer[2] >> 24
                if not index:
                    break
            assert tuple(found) == mailbox.protocols
