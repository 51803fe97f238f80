"""ACPI: tables whose checksums and pointers hold, and byte code that says what was meant."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.board import acpi, aml
from bellwire_vmm.machine.gsis import intx_gsi
from bellwire_vmm.machine.memory import GuestMemory

HOLE_END = 0x10_0000


@pytest.fixture(params=[1, 8])
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    memory = GuestMemory(2 << 20)
    assert acpi.write_tables(memory, request.param) == acpi.ROOT
    yield memory
    memory.close()


def table(memory: GuestMemory, address: int) -> bytes:
    size = int.from_bytes(memory.read(address + 4, 4), "little")
    return memory.read(address, size)


def tables(memory: GuestMemory) -> dict[bytes, bytes]:
    """By signature, found as a guest finds them: from the root pointer on."""
    root = memory.read(acpi.ROOT, 36)
    (xsdt,) = struct.unpack_from("<Q", root, 24)
    found = {b"RSD ": root, b"XSDT": table(memory, xsdt)}
    for (address,) in struct.iter_unpack("<Q", found[b"XSDT"][36:]):
        content = table(memory, address)
        found[content[:4]] = content
    (found[b"FACS"], found[b"DSDT"]) = (table(memory, at) for at in struct.unpack_from("<II", found[b"FACP"], 36))
    return found


def test_every_table_is_there_and_sums_up_to_zero(memory: GuestMemory) -> None:
    found = tables(memory)
    assert sorted(found) == [b"APIC", b"DSDT", b"FACP", b"FACS", b"RSD ", b"XSDT"]
    assert sum(found[b"RSD "][:20]) % 256 == 0
    for signature, content in found.items():
        if signature != b"FACS":  # which has no checksum
            assert sum(content) % 256 == 0, signature


def test_the_tables_lie_in_the_legacy_hole_and_apart(memory: GuestMemory) -> None:
    end = acpi.ROOT + sum(-(-len(content) // 64) * 64 for content in tables(memory).values())
    assert end <= HOLE_END
    assert memory.read(end, HOLE_END - end) == bytes(HOLE_END - end)
    assert struct.unpack_from("<I", tables(memory)[b"FACP"], 36)[0] % 64 == 0  # FACS


def test_there_is_a_processor_for_each_vcpu_and_one_ioapic(memory: GuestMemory) -> None:
    content = tables(memory)[b"APIC"]
    at, entries = 44, []
    while at < len(content):
        entries.append(content[at : at + content[at + 1]])
        at += content[at + 1]
    processors = [entry for entry in entries if entry[0] == 0]
    assert [(entry[2], entry[3], entry[4]) for entry in processors] == [(i, i, 1) for i in range(len(processors))]
    (ioapic,) = (entry for entry in entries if entry[0] == 1)
    assert ioapic[2] not in range(len(processors))
    assert struct.unpack_from("<II", ioapic, 4) == (0xFEC0_0000, 0)


def test_the_fixed_hardware_has_power_and_reset(memory: GuestMemory) -> None:
    fadt = tables(memory)[b"FACP"]
    assert struct.unpack_from("<I", fadt, 56) + struct.unpack_from("<I", fadt, 64) == (0x600, 0x604)
    assert fadt[88:90] == b"\x04\x02"
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert struct.unpack_from("<I", fadt, 112)[0] & 1 << 10  # and the register is there
    assert struct.unpack_from("<I", fadt, 40) + struct.unpack_from("<Q", fadt, 140) == 2 * struct.unpack_from(
        "<Q", fadt, 140
    )


def package_length(code: bytes, at: int) -> tuple[int, int]:
    """Where the term that has its length at ``at`` ends, and where its content begins."""
    more = code[at] >> 6
    size = code[at] & (0xF if more else 0x3F)
    for number in range(more):
        size |= code[at + 1 + number] << 4 + 8 * number
    return at + size, at + 1 + more


def routing(dsdt: bytes) -> list[tuple[int, ...]]:
    """The packages in `_PRT`."""
    at = dsdt.index(b"_PRT") + 5
    end, at = package_length(dsdt, at)
    count, at = dsdt[at], at + 1
    found = []
    while at < end:
        assert dsdt[at] == 0x12
        inner, body = package_length(dsdt, at + 1)
        found.append(tuple(integers(dsdt[body + 1 : inner])))
        at = inner
    assert len(found) == count
    return found


def integers(code: bytes) -> Iterator[int]:
    sizes = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    at = 0
    while at < len(code):
        size = sizes.get(code[at], 0)
        yield int.from_bytes(code[at + 1 : at + 1 + size], "little") if size else code[at]
        at += 1 + size


def test_the_pins_of_every_slot_are_wired_as_the_vmm_wires_them(memory: GuestMemory) -> None:
    wired = routing(tables(memory)[b"DSDT"])
    assert wired == [
        (slot << 16 | 0xFFFF, pin, 0, intx_gsi(slot, pin + 1)) for slot in range(1, 32) for pin in range(4)
    ]


def test_the_byte_code_is_one_scope_and_the_sleep_state(memory: GuestMemory) -> None:
    code = tables(memory)[b"DSDT"][36:]
    assert code[0] == 0x10
    end, at = package_length(code, 1)
    assert code[at : at + 5] == b"\\_SB_"
    assert code[end:] == b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"


@given(st.integers(0, (1 << 64) - 1))
def test_an_integer_takes_as_few_bytes_as_it_can(value: int) -> None:
    code = aml.integer(value)
    assert list(integers(code)) == [value]
    assert len(code) == (1 if value < 2 else 1 + next(size for size in (1, 2, 4, 8) if value < 1 << 8 * size))


def test_an_identifier_is_compressed() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


@pytest.mark.parametrize("size", [0, 61, 62, 63, 0xFFD, 0xFFE, 0x1_0000, 0xF_FFFB, 0xF_FFFC])
def test_a_length_counts_its_own_bytes(size: int) -> None:
    code = aml.scope("_SB", bytes(size))
    end, at = package_length(code, 1)
    assert (end, code[at : at + 5]) == (len(code), b"\\_SB_")


@pytest.mark.parametrize(
    ("kind", "extent", "tag", "form"),
    [
        (aml.BUSES, range(1), 0x88, "<5H"),
        (aml.PORTS, range(0xC000, 0x1_0000), 0x88, "<5H"),
        (aml.MEMORY, range(0xC000_0000, 0xFEC0_0000), 0x87, "<5I"),
        (aml.MEMORY, range(1 << 39, 1 << 40), 0x8A, "<5Q"),
    ],
)
def test_a_window_is_as_wide_as_it_needs(kind: int, extent: range, tag: int, form: str) -> None:
    code = aml.window(kind, extent)
    assert (code[0], int.from_bytes(code[1:3], "little")) == (tag, len(code) - 3)
    assert struct.unpack_from(form, code, 6) == (0, extent.start, extent.stop - 1, 0, len(extent))


def test_an_integer_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
