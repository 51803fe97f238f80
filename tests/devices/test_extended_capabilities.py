"""Extended capabilities: where they lie, what a guest reads and writes, what survives a reset (PCIe 6.0 §7.6, §7.4)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import (
    AccessControl,
    Acs,
    Ats,
    Bar,
    DeclarationError,
    Dvsec,
    Ltr,
    Pasid,
    PciDevice,
    SerialNumber,
    Vsec,
)
from bellwire.declare.capability import END, START
from bellwire.model.labels import Labels
from bellwire.testing import Guest, conformance
from bellwired.workers.registers import registers
from vfio_user import RegionIndex

CONFIG = RegionIndex.CONFIG


class Level(IntFlag):
    LOW = 1
    HIGH = 2


class Full(PciDevice, vendor=0x1234, device=0xE0E0, class_code=0x088000):
    """Has a capability of each simple kind."""

    mmio = Bar(0, size=4096)
    serial = SerialNumber(0x0011_2233_4455_6677)
    debug = Vsec(0x10, revision=3, size=0x18)
    level = debug.reg(0x08, Level, size=2, writable=0x3)
    seen = debug.reg(0x0A, size=2, access="w1c", reset=0x00F0, sticky=True)
    ticks = debug.reg(0x0C, access="ro", reset=7)
    wide = debug.reg(0x10, size=8, sticky=True)
    other = Dvsec(0x1E98, 0x0008, size=0x10)
    tail = other.reg(0x0A, size=2)
    latency = Ltr()
    isolation = Acs(AccessControl.REQUEST_REDIRECT | AccessControl.COMPLETION_REDIRECT)
    ats = Ats(queue_depth=16)
    pasid = Pasid(bits=16, execute=True)

    def setup(self) -> None:
        self.heard: list[tuple[str, int]] = []

    @level.write
    def level_changed(self, value: int) -> None:
        self.heard.append(("level", value))

    @ticks.read
    def look(self) -> int:
        return 0xAABB_CCDD


TestFull = conformance(Full)


@pytest.fixture
def guest() -> Iterator[Guest[Full]]:
    with Guest(Full) as guest:
        yield guest


def chain(guest: Guest[Any]) -> list[tuple[int, int, int]]:
    """Offset, ID and version of each extended capability, as Linux walks them."""
    found = []
    at = START
    while at:
        header = guest.config_read(at, 4)
        found.append((at, header & 0xFFFF, header >> 16 & 0xF))
        at = header >> 20
    return found


def test_they_are_chained_in_the_order_of_their_declarations(guest: Guest[Full]) -> None:
    assert chain(guest) == [
        (0x100, 0x03, 1), (0x10C, 0x0B, 1), (0x124, 0x23, 1), (0x134, 0x18, 1), (0x13C, 0x0D, 1), (0x144, 0x0F, 1),
        (0x14C, 0x1B, 1),
    ]  # fmt: skip


def test_a_device_without_any_reads_zeros(guest: Guest[Full]) -> None:
    class Bare(PciDevice, vendor=2, device=2, class_code=3, name="without-extended"):
        pass

    with Guest(Bare) as bare:
        assert bare.read(CONFIG, START, END - START) == 0
        bare.write(CONFIG, (1 << 8 * (END - START)) - 1, offset=START, size=END - START)
        assert bare.read(CONFIG, START, END - START) == 0


def test_their_registers_are_read_by_name(guest: Guest[Full]) -> None:
    assert guest.read(Full.level) == 0
    assert guest.read(Full.seen) == 0x00F0
    assert guest.read(Full.ticks) == 0xAABB_CCDD
    assert guest.config_read(guest.capability(Full.debug) + 4, 4) == 0x0183_0010
    assert guest.config_read(guest.capability(Full.other) + 4, 4) == 0x0100_1E98
    assert guest.config_read(guest.capability(Full.other) + 8, 2) == 0x0008


def test_the_serial_number_can_be_an_instances_own(guest: Guest[Full]) -> None:
    assert guest.device.serial == 0x0011_2233_4455_6677
    guest.device.serial = 5
    assert guest.config_read(guest.capability(Full.serial) + 4, 8) == 5
    with pytest.raises(ValueError, match="64 bits"):
        guest.device.serial = 1 << 64


def test_a_write_stores_the_writable_bits_and_runs_the_hook(guest: Guest[Full]) -> None:
    guest.write(Full.level, 0xFFFF)
    assert guest.device.level == Level.LOW | Level.HIGH
    assert guest.device.heard == [("level", 0xFFFF)]
    guest.write(Full.seen, 0x0030)
    assert guest.device.seen == 0x00C0
    guest.write(Full.ticks, 0)
    assert guest.device.ticks == 7


def test_a_wide_write_is_split_at_the_edges_of_registers(guest: Guest[Full]) -> None:
    guest.config_write(guest.capability(Full.debug) + 8, 0xFFF0_0001, 4)
    assert (guest.device.level, guest.device.seen) == (Level.LOW, 0x0000)


def test_the_device_has_the_bytes_of_vendor_capabilities(guest: Guest[Full]) -> None:
    guest.device.other[0x0A:0x0C] = b"ab"
    assert guest.device.tail == 0x6261
    assert (len(guest.device.debug), len(guest.device.other)) == (0x18, 0x10)


def test_headers_take_no_write(guest: Guest[Full]) -> None:
    before = chain(guest)
    for at, _, _ in before:
        guest.config_write(at, 0xFFFF_FFFF, 4)
    assert chain(guest) == before


def test_sticky_registers_keep_their_value_over_a_reset_and_no_others_do(guest: Guest[Full]) -> None:
    guest.write(Full.wide, 0x1122_3344_5566_7788)
    guest.write(Full.seen, 0x0010)
    guest.write(Full.level, 1)
    guest.write(Full.tail, 0x7777)
    guest.reset()
    assert guest.device.wide == 0x1122_3344_5566_7788
    assert guest.device.seen == 0x00E0
    assert guest.device.level == 0
    assert guest.device.tail == 0
    with Guest(Full) as fresh:  # after power-on
        assert (fresh.device.wide, fresh.device.seen) == (0, 0x00F0)


def test_a_snapshot_has_them(guest: Guest[Full]) -> None:
    guest.write(Full.tail, 0x4321)
    with Guest(Full) as other:
        other.restore(guest.snapshot())
        assert other.read(Full.tail) == 0x4321


def test_the_device_sees_what_the_guest_has_turned_on(guest: Guest[Full]) -> None:
    device = guest.device
    assert not device.ats.enabled
    assert not device.pasid.enabled
    guest.write(Full.ats.control, 0x8002)
    guest.write(Full.pasid.control, 0x7)
    guest.write(Full.isolation.control, 0xFFFF)
    guest.write(Full.latency.max_snoop, 0x0C05)
    guest.write(Full.latency.max_no_snoop, 0xFFFF)
    assert (device.ats.enabled, device.ats.smallest_unit) == (True, 16384)
    assert (device.pasid.enabled, device.pasid.execute, device.pasid.privileged) == (True, True, False)
    assert device.isolation == AccessControl.REQUEST_REDIRECT | AccessControl.COMPLETION_REDIRECT
    assert device.latency.snoop == 5 * 32**3
    assert device.latency.no_snoop == 0x3FF * 32**7
    assert guest.read(Full.ats.able) == 0x30
    assert guest.read(Full.pasid.able) == 0x1002


def test_the_log_and_the_counters_name_their_registers() -> None:
    labels = Labels(Full.layout)
    at = Full.layout.extended[1].at
    assert labels.at(CONFIG, 0x04, 2) == ["config space"]
    assert labels.at(CONFIG, at, 0x0C) == ["config space", "debug.vsec_header", "level", "seen"]
    assert labels.register(CONFIG, at + 0x08, 2) is Full.level


def test_registers_are_listed_with_their_place_in_config_space(guest: Guest[Full]) -> None:
    guest.write(Full.level, 2)
    found = {each["name"]: each for each in registers(guest.device)}
    assert found["level"] == {
        "name": "level",
        "bar": RegionIndex.CONFIG,
        "offset": 0x114,
        "size": 2,
        "access": "rw",
        "value": 2,
        "meaning": "HIGH",
    }
    assert found["pasid.control"]["offset"] == 0x152


def wrong(**body: Any) -> str:
    with pytest.raises(DeclarationError) as refused:
        type("Wrong", (PciDevice,), body)
    return str(refused.value)


def test_mistakes_are_refused_with_the_name_of_the_declaration() -> None:
    assert "Wrong.two: a function has one ATS capability, and one is one" in wrong(one=Ats(), two=Ats())
    assert "Wrong.late: it ends at 0x100c: there are 3840 bytes" in wrong(
        first=Vsec(1, size=0xF00), late=SerialNumber(1)
    )
    debug = Vsec(1, size=0x10)
    assert "Wrong.beyond: 0x10 to 0x13 lies outside debug, which has 0x10 bytes" in wrong(
        debug=debug, beyond=debug.reg(0x10)
    )
    debug = Vsec(1, size=0x10)
    assert "Wrong.early: 0x4 to 0x7 overlaps debug.vsec_header" in wrong(debug=debug, early=debug.reg(0x04))
    debug = Vsec(1, size=0x10)
    assert "Wrong.header: offset 0x0 is in the header of debug" in wrong(debug=debug, header=debug.reg(0x00))
    debug = Vsec(1, size=0x10)
    assert "Wrong.b: 0xa to 0xb overlaps a, 0x8 to 0xb" in wrong(debug=debug, a=debug.reg(8), b=debug.reg(10, size=2))
    assert "Wrong.lost: its capability is not declared in Wrong" in wrong(lost=Vsec(1, size=0x10).reg(8))


def test_a_conventional_device_cannot_have_any() -> None:
    with pytest.raises(DeclarationError, match=r"Old\.serial: only a PCI Express device has it"):

        class Old(PciDevice, vendor=2, device=2, class_code=3, express=False):
            serial = SerialNumber(1)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2, 0x60).map(lambda words: 4 * words), max_size=60))
def test_any_number_of_capabilities_that_fits_forms_a_chain(sizes: list[int]) -> None:
    body: dict[str, Any] = {f"part{number}": Vsec(number, size=size) for number, size in enumerate(sizes)}
    if sum(sizes) > END - START:
        assert "for extended capabilities" in wrong(**body)
        return
    kind = type("Chained", (PciDevice,), body)
    at = START
    for layout, size in zip(kind.layout.extended, sizes, strict=True):  # type: ignore[attr-defined]
        assert (layout.at, layout.end) == (at, at + size)
        assert layout.header >> 20 in (at + size, 0)
        at += size


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, END - 1), st.sampled_from([1, 2, 3, 4, 5, 8, 64, 4096]), st.binary()),
        max_size=20,
    )
)
def test_no_access_to_config_space_gets_out_of_hand(accesses: list[tuple[bool, int, int, bytes]]) -> None:
    """A client may read and write any bytes: it gets as many as it asked for, and read-only bits stay."""
    with Guest(Full) as guest:
        fixed = chain(guest)
        for write, offset, size, data in accesses:
            size = min(size, END - offset)
            if write:
                guest.device.core.write(CONFIG, offset, memoryview(data[:size].ljust(size, b"\xff")))
            else:
                assert len(guest.device.core.read(CONFIG, offset, size)) == size
        assert chain(guest) == fixed
        assert guest.device.level in range(4)
        assert guest.read(Full.pasid.able) == 0x1002


def test_every_offset_can_be_read_and_written_in_every_width(guest: Guest[Full]) -> None:
    core, fixed = guest.device.core, chain(guest)
    for size in (1, 2, 4, 8):
        whole = core.read(CONFIG, 0, END)
        for offset in range(END - size + 1):
            assert core.read(CONFIG, offset, size) == whole[offset : offset + size]
        ones = memoryview(b"\xff" * size)
        for offset in range(START - 2 * size, END - size + 1):
            core.write(CONFIG, offset, ones)
    assert chain(guest) == fixed
    assert guest.read(Full.pasid.able) == 0x1002
