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


def test_declarations_that_are_pasted_leave_nothing_to_suggest() -> None:
    lines = suggested(("read", 0x10, 8), ("write", 0x20, b"ab"))
    body = "\n".join(f"    {line}" for line in ["mmio = Bar(0, size=4096)", *lines])
    space: dict[str, Any] = {"Bar": Bar, "PciDevice": PciDevice}
    exec(f"class Whole(PciDevice, vendor=1, device=2, class_code=0x088000):\n{body}\n", space)
    suggest = Suggest()
    with Guest(space["Whole"], filters=[suggest]) as guest:
        guest.read(0, 0x10, 8)
        guest.write(0, 7, offset=0x20, size=2)
        assert suggest.lines() == []


def test_what_is_declared_is_not_suggested() -> None:
    assert suggested(("read", 0, 4), ("write", 0, b"abcd"), ("read", 2, 2)) == []


def test_a_guest_cannot_make_it_remember_without_end() -> None:
    suggest = Suggest()
    with Guest(Half, filters=[suggest]) as guest:
        for offset in range(4, 4096, 4):
            guest.read(0, offset, 4)
        assert len(suggest.touched) == MOST_PLACES
        assert suggest.report()["missed"] == 1023 - MOST_PLACES
