"""What a device class may not say, and how the refusal names it."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from enum import Enum, IntEnum, IntFlag
from typing import Generic, TypeVar

import pytest

from bellwire import Bar, DeclarationError, IntX, Msi, MsiX, Option, PciDevice, Saved, SavedBytes
from bellwire.testing import conformance


def refused(words: str) -> pytest.RaisesExc[DeclarationError]:
    return pytest.raises(DeclarationError, match=words)


Item = TypeVar("Item")
IDS = {"vendor": 0x1234, "device": 0x5678, "class_code": 0xFF0000}


def test_overlapping_registers_are_refused_by_name() -> None:
    with refused(r"Clash\.second: 0x2 to 0x3 overlaps first, 0x0 to 0x3, in mmio"):

        class Clash(PciDevice, **IDS):
            mmio = Bar(0, size=4096)
            first = mmio.reg(0)
            second = mmio.reg(2, size=2)


def test_a_register_inside_an_mmap_area_is_refused() -> None:
    with refused(r"status: .* overlaps frame"):

        class Mapped(PciDevice, **IDS):
            mmio = Bar(0, size=8192)
            frame = mmio.area(4096, 4096)
            status = mmio.reg(4096, access="ro")


def test_a_doorbell_inside_an_mmap_area_is_refused() -> None:
    with refused(r"go: .* overlaps frame"):

        class Mapped(PciDevice, **IDS):
            mmio = Bar(0, size=8192)
            frame = mmio.area(4096, 4096)
            go = mmio.doorbell(4100)


def test_an_msix_table_inside_an_mmap_area_is_refused() -> None:
    with refused(r"irq: .* overlaps frame"):

        class Mapped(PciDevice, **IDS):
            mmio = Bar(0, size=8192)
            frame = mmio.area(0, 4096)
            irq = MsiX(4, bar=mmio, offset=1024)


@pytest.mark.parametrize(("offset", "size"), [(2, 4), (4, 8), (1, 2)])
def test_a_misaligned_register_is_refused(offset: int, size: int) -> None:
    with refused(r"misaligned"):

        class Askew(PciDevice, **IDS):
            mmio = Bar(0, size=4096)
            one = mmio.reg(offset, size=size)


@pytest.mark.parametrize("size", [0, 9, -1])
def test_a_register_has_one_to_eight_bytes(size: int) -> None:
    with refused(r"1 to 8 bytes"):

        class Wide(PciDevice, **IDS):
            mmio = Bar(0, size=4096)
            one = mmio.reg(0, size=size)


def test_a_bar_that_is_no_power_of_two_is_refused() -> None:
    with refused(r"Odd\.mmio: .*power of two.*0xbb8"):

        class Odd(PciDevice, **IDS):
            mmio = Bar(0, size=3000)


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        (lambda: Bar(6, size=4096), "index is 0 to 5"),
        (lambda: Bar(0, size=8), "at least 16"),
        (lambda: Bar(0, size=512, io=True), "at most 256 ports"),
        (lambda: Bar(0, size=16, io=True, bits=64), "32 bits wide"),
        (lambda: Bar(5, size=4096, bits=64), "takes two indices"),
        (lambda: Bar(0, size=1 << 32), "at most 2 GiB"),
        (lambda: Bar(0, size=4096, bits=48), "32 or 64"),
        (lambda: Bar(0, size=4096.0), r"Strange\.mmio: .* wrong type"),  # type: ignore[arg-type]
    ],
)
def test_a_bar_that_pci_cannot_express_is_refused(bar: object, words: str) -> None:
    with refused(words):

        class Strange(PciDevice, **IDS):
            mmio = bar()  # type: ignore[operator]


def test_two_bars_of_one_index_are_refused() -> None:
    with refused(r"ports: BAR 1 is already mmio's"):

        class Double(PciDevice, **IDS):
            mmio = Bar(0, size=4096, bits=64)
            ports = Bar(1, size=16, io=True)


def test_a_register_beyond_its_bar_is_refused() -> None:
    with refused(r"lies outside mmio, which has 0x10 bytes"):

        class Beyond(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(16)


def test_an_unknown_access_word_is_refused() -> None:
    with refused(r"access 'rx' is none of rw, ro, wo"):

        class Unknown(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0, access="rx")


def test_a_reset_value_too_large_is_refused() -> None:
    with refused(r"0x100 does not fit in 1 bytes"):

        class Large(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0, size=1, reset=0x100)


@pytest.mark.parametrize("kind", [int, 8, Enum])
def test_a_kind_that_is_no_enumeration_of_numbers_is_refused(kind: object) -> None:
    with refused(r"Odd\.one: its kind is an IntFlag or an IntEnum, not"):

        class Odd(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0, kind)  # type: ignore[call-overload]


def test_a_reset_value_that_the_registers_type_has_not_is_refused() -> None:
    class Mode(IntEnum):
        ONLY = 1

    with refused(r"Unset\.one: reset value: 0 is not a valid"):

        class Unset(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0, Mode)


def test_devices_of_two_functions_may_have_one_name() -> None:
    def one() -> type[PciDevice]:
        class Probe(PciDevice, **IDS): ...

        return Probe

    def other() -> type[PciDevice]:
        class Probe(PciDevice, **IDS): ...

        return Probe

    assert one().name == other().name == "probe"


def test_an_msix_table_lies_in_a_memory_bar_of_the_same_device() -> None:
    with refused(r"Ports\.irq: its table lies in memory"):

        class Ports(PciDevice, **IDS):
            ports = Bar(0, size=256, io=True)
            irq = MsiX(1, bar=ports)

    for index in (0, 1):
        with refused(r"Lost\.irq: its BAR is not declared in"):

            class Lost(PciDevice, **IDS):
                mmio = Bar(0, size=4096)
                irq = MsiX(1, bar=Bar(index, size=4096))


def test_two_devices_of_one_file_with_one_name_are_refused() -> None:
    class First(PciDevice, **IDS, name="twin"):
        pass

    with refused(r"Second and .*First of .* are both named 'twin'"):

        class Second(PciDevice, **IDS, name="twin"):
            pass


def test_a_name_of_the_sdks_own_is_refused() -> None:
    with refused(r"PciDevice has this name for its own use"):

        class Hiding(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            dma = mmio.reg(0)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "hint"), [("name", "say name= in the class line"), ("log", "choose another"), ("core", "choose another")]
)
def test_a_class_body_cannot_take_the_sdks_own_attributes(name: str, hint: str) -> None:
    with refused(rf"Taker\.{name}: PciDevice has this name for its own use: {hint}"):
        types.new_class("Taker", (PciDevice,), dict(IDS), lambda own: own.update({name: "mine"}))


def test_a_device_may_be_generic() -> None:
    class Base(PciDevice, Generic[Item]):
        mmio = Bar(0, size=16)

    class Concrete(Base[int], **IDS): ...

    assert Concrete.layout.bars[0].bar is Base.mmio


def test_two_registers_of_one_name_are_refused() -> None:
    with refused(r"Dut: what is declared at mmio \+ 0x4 has no name: assign it to one"):

        class Dut(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            control = mmio.reg(0)
            status = mmio.reg(4)
            status = mmio.reg(8)  # noqa: PIE794


def test_a_method_that_hides_a_register_is_refused() -> None:
    class Base(PciDevice):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)

    with refused(r"Derived\.one hides the declaration .*Base\.one"):

        class Derived(Base, **IDS):
            def one(self) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"vendor": 0x12345, "device": 1, "class_code": 1}, r"vendor=0x12345 does not fit in 16 bits"),
        ({"vendor": "0x1234", "device": 1, "class_code": 1}, r"vendor='0x1234' is no number"),
        ({**IDS, "name": "../up"}, r"name='\.\./up': a name has letters"),
        ({"vendor": 0xFFFF, "device": 1, "class_code": 1}, "vendor=0xffff is what a guest reads of an empty slot"),
        (
            {"vendor": 1, "device": 1, "class_code": 1},
            "vendor=0x1 is what a guest reads of a device that is not ready yet",
        ),
        ({"vendor": 2, "device": 1}, "class_code missing"),
        ({"vendor": 2, "device": 1, "class_code": 1, "clas": 2}, "no class keyword clas"),
        ({**IDS, "subsystem": (1 << 16, 0)}, "subsystem"),
    ],
)
def test_a_bad_class_line_is_refused(line: dict[str, object], words: str) -> None:
    with refused(words):

        class Bad(PciDevice, **line):
            pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MsiX(0), "1 to 2048"),
        (lambda: MsiX(4, offset=4), "multiple of 8"),
        (lambda: Msi(3), "1, 2, 4"),
        (lambda: IntX(5), r"INTA.*INTD"),
        (lambda: IntX(0), r"INTA.*INTD"),
        (lambda: Saved("text"), "int, bool or float"),  # type: ignore[type-var]
        (lambda: SavedBytes(0), "at least 1"),
        (lambda: Option([]), "an option is"),  # type: ignore[type-var]
    ],
)
def test_other_declarations_are_checked_too(make: object, words: str) -> None:
    with refused(re.escape(words) if "." not in words else words):

        class Bad(PciDevice, **IDS):
            thing = make()  # type: ignore[operator]


@pytest.mark.parametrize("make", [IntX, lambda: IntX(4), lambda: Msi(32), lambda: MsiX(1), lambda: MsiX(2048)])
def test_other_declarations_may_be_at_their_limits(make: Callable[[], object]) -> None:
    class Good(PciDevice, **IDS):
        thing = make()

    assert Good.thing is not None


def test_a_base_class_cannot_be_instantiated() -> None:
    class Base(PciDevice):
        mmio = Bar(0, size=16)

    with refused("is a base for devices"):
        Base()


def test_matched_doorbells_may_share_an_offset_with_a_register() -> None:
    class Shared(PciDevice, **IDS):
        mmio = Bar(0, size=16)
        queue0 = mmio.doorbell(0, match=0)
        queue1 = mmio.doorbell(0, match=1)
        other = mmio.reg(0)

        @queue0.ring
        @queue1.ring
        def rung(self) -> None: ...

    assert len(Shared.layout.doorbells) == 2


def test_two_doorbells_with_one_match_are_refused() -> None:
    with refused("overlaps queue0"):

        class Same(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            queue0 = mmio.doorbell(0, match=7)
            queue1 = mmio.doorbell(0, match=7)


def test_match_and_value_exclude_each_other() -> None:
    with refused("exclude each other"):

        class Both(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            bell = mmio.doorbell(0, match=7, value=True)


def test_a_subclass_inherits_identity_and_registers() -> None:
    class Flags(IntFlag):
        ON = 1

    class Parent(PciDevice, **IDS, revision=3, name="parent"):
        mmio = Bar(0, size=16)
        one = mmio.reg(0, Flags)

    class Child(Parent, device=0x9999, name="child"):
        two = Parent.mmio.reg(4)

    assert Child.identity is not None
    assert (Child.identity.vendor, Child.identity.device, Child.identity.revision) == (0x1234, 0x9999, 3)
    assert [item.name for item in Child.layout.bars[0].placed] == ["one", "two"]
    assert [item.name for item in Parent.layout.bars[0].placed] == ["one"]


def test_the_smallest_bar_of_ports_passes_the_suite() -> None:
    class Tiny(PciDevice, **IDS, express=False):
        ports = Bar(0, size=4, io=True)
        port = ports.reg(0)

    suite = conformance(Tiny)
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite(), name)()
