"""The parts that need no KVM: BARs, address spaces, config space, capabilities, and what guests leave in memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.device import capabilities
from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.capabilities import Msi, MsixCapability
from bellwire_vmm.errors import AddressConflictError
from bellwire_vmm.guests.layout import RESULTS, ResultError, Ring, unpack_edu, unpack_nvme, unpack_pci, unpack_rings
from bellwire_vmm.machine.bus import AddressSpace
from bellwire_vmm.machine.gsis import intx_gsi
from bellwire_vmm.machine.pci import PciBus
from bellwire_vmm.machine.windows import Window

RAM = 16 << 20


def written(bar: Bar, value: int, size: int = 4) -> Bar:
    for at, byte in enumerate(value.to_bytes(size, "little"), bar.register.start):
        bar.write(at, byte)
    return bar


@pytest.mark.parametrize(
    ("flags", "size", "value", "content"),
    [
        (0, 0x1000, 0xFFFF_FFFF, 0xFFFF_F000),
        (8, 0x10, 0xFFFF_FFFF, 0xFFFF_FFF8),
        (1, 0x10, 0xFFFF_FFFF, 0xFFFF_FFF1),
        (0, 0x1000, 0xC000_0ABC, 0xC000_0000),
        (0xC, 0x2000, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_E00C),
    ],
)
def test_a_bar_keeps_its_type_and_the_address_bits_above_its_size(
    flags: int, size: int, value: int, content: int
) -> None:
    bar = Bar(0, size, flags)
    written(bar, value, len(bar.register))
    assert bar.content() == content.to_bytes(len(bar.register), "little")


@pytest.mark.parametrize(
    ("flags", "address", "answers"),
    [
        (0, 0, False),
        (0, RAM - 0x1000, False),
        (0, RAM, True),
        (0, 0xFEBF_F000, True),
        (0, 0xFEC0_0000, False),
        (0, 0xFFFF_F000, False),
        (1, 0, False),
        (1, 0xC000, True),
        (1, 0x1_0000, False),
        (4, 1 << 32, True),
        (4, (1 << 40) - 0x1000, True),
        (4, 1 << 40, False),
    ],
)
def test_a_bar_answers_where_it_hides_nothing(flags: int, address: int, answers: bool) -> None:
    bar = Bar(0, 0x1000, flags)
    assert written(bar, address, len(bar.register)).decodable(RAM) is answers


@given(st.lists(st.tuples(st.sampled_from([16, 256, 4096, 65536]), st.booleans())))
def test_a_window_gives_out_aligned_places_that_do_not_overlap(steps: list[tuple[int, bool]]) -> None:
    window = Window(range(0x1_0010, 0x8_0000))
    taken: dict[int, int] = {}
    for size, give_back in steps:
        if give_back and taken:
            address = next(iter(taken))
            window.give_back(address)
            del taken[address]
        try:
            address = window.take(size)
        except AddressConflictError:
            assert size > 16
            continue
        assert address % size == 0
        assert 0x1_0010 <= address <= 0x8_0000 - size
        assert all(address + size <= other or other + taken[other] <= address for other in taken)
        taken[address] = size


@dataclass
class Noted:
    """A target, or a function, that notes what it is asked."""

    seen: list[tuple[int, int | bytes]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> bytes:
        self.seen.append((offset, size))
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.seen.append((offset, data))

    config_read, config_write = read, write


def test_an_address_space_asks_who_holds_all_of_an_access() -> None:
    space, low, high = AddressSpace(), Noted(), Noted()
    space.add(0x2000, 0x1000, high)
    space.add(0x1000, 0x1000, low)
    assert space.read(0x1FFC, 4) == bytes(4)
    assert space.read(0x1FFE, 4) == b"\xff" * 4  # across the border: nobody's
    assert space.read(0x0FFF, 1) == space.read(0x3000, 1) == b"\xff"
    space.write(0x2004, b"ab")
    space.write(0x2FFF, b"ab")
    assert (low.seen, high.seen) == ([(0xFFC, 4)], [(4, b"ab")])


def test_an_address_space_gives_nothing_out_twice() -> None:
    space, target = AddressSpace(), Noted()
    space.add(0x1000, 0x1000, target)
    for start in (0x0FFF, 0x1000, 0x1FFF):
        with pytest.raises(AddressConflictError, match=r"overlaps"):
            space.add(start, 2, Noted())
    space.remove(target)
    assert space.find(0x1000, 1) is None
    space.add(0x1000, 0x1000, Noted())


def select(bus: PciBus, slot: int, offset: int, *, bus_number: int = 0, function: int = 0, enable: int = 1) -> None:
    address = enable << 31 | bus_number << 16 | slot << 11 | function << 8 | offset
    bus.write(0, address.to_bytes(4, "little"))


def test_config_accesses_reach_the_selected_function_at_byte_offsets() -> None:
    bus, function = PciBus(), Noted()
    bus.insert(3, function)
    select(bus, 3, 0x3C)
    assert bus.read(0, 4) == (0x8000_183C).to_bytes(4, "little")
    assert bus.read(4, 4) == bytes(4)
    bus.write(6, b"xy")
    assert function.seen == [(0x3C, 4), (0x3E, b"xy")]


@pytest.mark.parametrize("where", [{"bus_number": 1}, {"function": 1}, {"enable": 0}])
def test_elsewhere_there_is_nobody(where: dict[str, int]) -> None:
    bus = PciBus()
    select(bus, 0, 0, **where)
    assert bus.read(4, 4) == b"\xff" * 4
    bus.write(4, b"abcd")


def test_the_host_bridge_is_a_host_bridge_and_cannot_be_changed() -> None:
    bus = PciBus()
    select(bus, 0, 0)
    bus.write(4, bytes(4))
    assert bus.read(4, 4) == bytes.fromhex("361b0800")
    select(bus, 0, 8)
    assert bus.read(4, 4)[2:] == b"\x00\x06"


@given(st.binary(min_size=256, max_size=256))
def test_whatever_config_space_holds_the_capability_walk_ends(config: bytes) -> None:
    found = capabilities.find(config)
    assert all(0x40 <= at <= 0xFC and at % 4 == 0 for at in found.values())
    for at in found.values():
        Msi.unpack(config[at : at + 24].ljust(24, b"\0"))
        MsixCapability.unpack(config[at : at + 12].ljust(12, b"\0"))


@pytest.mark.parametrize(
    ("control", "rest", "msi"),
    [
        (0x0001, struct.pack("<IH", 0xFEE0_0000, 0x41), Msi(True, 0xFEE0_0000, 0x41, 1, 0)),
        (0x00A1, struct.pack("<QH", 0x1_FEE0_0000, 0x41), Msi(True, 0x1_FEE0_0000, 0x41, 4, 0)),
        (0x0180, struct.pack("<QHxxI", 0xFEE0_0000, 0x41, 5), Msi(False, 0xFEE0_0000, 0x41, 1, 5)),
    ],
)
def test_an_msi_capability_is_decoded_in_all_its_shapes(control: int, rest: bytes, msi: Msi) -> None:
    capability = struct.pack("<BBH", 5, 0, control) + rest
    assert Msi.unpack(capability[: Msi.size(control)].ljust(24, b"\0")) == msi


def test_an_msix_capability_says_where_table_and_pending_bits_lie() -> None:
    layout = MsixCapability.unpack(struct.pack("<BBHII", 0x11, 0, 0x8000 | 64, 0x1000 | 2, 0x3000 | 4))
    assert layout == MsixCapability(65, 2, range(0x1000, 0x1000 + 65 * 16), 4, range(0x3000, 0x3010))


def test_pins_rotate_with_the_slots() -> None:
    assert [intx_gsi(slot, 1) for slot in range(5)] == [16, 17, 18, 19, 16]
    assert [intx_gsi(1, pin) for pin in (1, 2, 3, 4)] == [17, 18, 19, 16]


class Memory:
    """Results as a guest might leave them."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    def read(self, address: int, count: int) -> bytes:
        at = address - RESULTS
        return self.content[at : at + count].ljust(count, b"\0")


def test_results_that_no_guest_left_are_not_believed() -> None:
    for unpack, guest in ((unpack_rings, "bell"), (unpack_edu, "edu"), (unpack_pci, "pci"), (unpack_nvme, "nvme")):
        with pytest.raises(ResultError, match=f"no results of {guest} at 0x20000: found 0x00000000"):
            unpack(Memory())


@pytest.mark.parametrize(
    ("done", "result", "why"),
    [
        (1 << 20, (0,) * 8, "bell claims 1048576 measurements"),
        (1, (1 << 40, 0, 0, 0, 0, RESULTS, RESULTS, RESULTS), "lie outside the results area"),
        (1, (64, 0, 0, 0, 0, 0xFFFF_FFFF_FFFF_FFFF, RESULTS, RESULTS), "lie outside the results area"),
    ],
)
def test_results_that_point_elsewhere_are_not_believed(done: int, result: tuple[int, ...], why: str) -> None:
    head = struct.pack("<II8x", int.from_bytes(b"BELL", "little"), done)
    with pytest.raises(ResultError, match=why):
        unpack_rings(Memory(head + struct.pack("<8Q", *result)))


def test_a_ring_is_packed_as_the_guests_read_it() -> None:
    packed = Ring(bar=1, offset=0x20, count=7, roundtrips=3, value=None, counter=0x50).pack()
    none = 0xFFFF_FFFF
    assert struct.unpack("<12IQ", packed) == (0, 1, 0x20, 4, 1, 7, 3, 0x50, none, none, none, 0, 0)
