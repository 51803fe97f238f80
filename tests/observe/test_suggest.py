"""Suggestions: what a guest touches and the device lacks, as declarations to paste."""

from __future__ import annotations

from typing import Any

from bellwire import Bar, PciDevice
from bellwire.filters.builtin.suggest import MOST_PLACES, Suggest
from bellwire.testing.guest import Guest


class Half(PciDevice, vendor=0x1234, device=0x11F2, class_code=0x088000):
    """Half of a device."""

    mmio = Bar(0, size=4096)
    there = mmio.reg(0x00)


def suggested(*accesses: tuple[str, int, Any]) -> list[str]:
    suggest = Suggest()
    with Guest(Half, filters=[suggest]) as guest:
        for verb, offset, what in accesses:
            if verb == "read":
                guest.read(0, offset, what)
            else:
                guest.write(0, int.from_bytes(what, "little"), offset=offset, size=len(what))
        assert suggest.report() == {"declarations": suggest.lines()}
        return suggest.lines()


def test_each_place_has_a_declaration_with_what_was_seen() -> None:
    assert suggested(
        ("write", 0x20, (5).to_bytes(4, "little")),
        ("write", 0x20, (6).to_bytes(4, "little")),
        ("read", 0x10, 4),
        ("read", 0x20, 4),
        ("write", 0x30, b"\x01"),
    ) == [
        'mmio_10 = mmio.reg(0x10, access="ro")  # 1 reads',
        "mmio_20 = mmio.reg(0x20)  # 1 reads 2 writes of 0x5, 0x6",
        'mmio_30 = mmio.reg(0x30, size=1, access="wo")  # 1 writes of 0x1',
    ]


def pasted(lines: list[str]) -> type[PciDevice]:
    body = "\n".join(f"    {line}" for line in ["mmio = Bar(0, size=4096)", *lines])
    space: dict[str, Any] = {"Bar": Bar, "PciDevice": PciDevice}
    exec(f"class Whole(PciDevice, vendor=2, device=2, class_code=0x088000):\n{body}\n", space)
    whole: type[PciDevice] = space["Whole"]
    return whole


def test_declarations_that_are_pasted_leave_nothing_to_suggest() -> None:
    suggest = Suggest()
    with Guest(pasted(suggested(("read", 0x10, 8), ("write", 0x20, b"ab"))), filters=[suggest]) as guest:
        guest.read(0, 0x10, 8)
        guest.write(0, 7, offset=0x20, size=2)
        assert suggest.lines() == []


def test_accesses_that_overlap_are_one_declaration() -> None:
    lines = suggested(
        ("write", 0x40, b"abcd"), ("read", 0x41, 1), ("read", 0x42, 2), ("write", 0x48, bytes(8)), ("read", 0x4C, 4)
    )
    assert lines == [
        "mmio_40 = mmio.reg(0x40)  # 2 reads 1 writes",
        "mmio_48 = mmio.reg(0x48, size=8)  # 1 reads 1 writes",
    ]
    pasted(lines)


def test_what_no_register_can_be_is_a_comment() -> None:
    lines = suggested(("read", 0x10, 8), ("read", 0x14, 8), ("read", 0x22, 4))
    assert lines == [
        '# mmio_10 = mmio.reg(0x10, size=12, access="ro")  # 2 reads; accesses that overlap: no register has 12 bytes',
        '# mmio_22 = mmio.reg(0x22, access="ro")  # 1 reads; misaligned: a register of 4 bytes lies at a multiple of 4',
    ]
    pasted(lines)


def test_what_is_declared_is_not_suggested() -> None:
    assert suggested(("read", 0, 4), ("write", 0, b"abcd"), ("read", 2, 2)) == []


def test_a_guest_cannot_make_it_remember_without_end() -> None:
    suggest = Suggest()
    with Guest(Half, filters=[suggest]) as guest:
        for offset in range(4, 4096, 4):
            guest.read(0, offset, 4)
        assert len(suggest.touched) == MOST_PLACES
        assert suggest.report()["missed"] == 1023 - MOST_PLACES
