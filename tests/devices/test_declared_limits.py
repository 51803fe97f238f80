"""What declarations accept, up to their limits and not beyond, and what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import (
    AccessControl,
    Acs,
    Ats,
    Bar,
    DeclarationError,
    Doe,
    Dvsec,
    IntX,
    Link,
    Msi,
    MsiX,
    Option,
    Pasid,
    PciDevice,
    Power,
    PowerState,
    ResizableBars,
    Saved,
    SavedBytes,
    SerialNumber,
    Vsec,
)
from bellwire.declare.block import MOST_ROWS, doorbell, reg
from bellwire.declare.declared import Declared, is_power_of_two
from bellwire.declare.layout import VENDOR_ROOM
from bellwire.declare.vendor import VendorCapability
from bellwire.model.labels import Labels

IDS = {"vendor": 0x1234, "device": 0x5678, "class_code": 0xFF0000}
BAR = Bar(0, size=1 << 16)
GOOD: list[Declared] = [
    Bar(0, size=16),
    Bar(5, size=16),
    Bar(4, size=16, bits=64, prefetchable=True),
    Bar(0, size=4, io=True),
    Bar(0, size=256, io=True),
    Bar(0, size=1 << 31),
    Bar(0, size=1 << 32, bits=64),
    Bar(0, size=16, fill=0xFF),
    BAR.area(0, 4096),
    BAR.area(4096, 8192),
    BAR.reg(0, size=1, reset=0xFF),
    BAR.reg(8, size=8, reset=(1 << 64) - 1, writable=(1 << 64) - 1),
    BAR.reg(1, size=3, reset=0xFF_FFFF, writable=0xFF_FFFF),
    BAR.reg(7, size=1, writable=0),
    BAR.doorbell(0, size=1, match=0xFF),
    BAR.doorbell(8, size=8, match=(1 << 64) - 1),
    BAR.doorbell(2, size=2, values=range(64)),
    BAR.doorbell(1, size=1, values=range(192, 256)),
    BAR.doorbell(0, values=range(7, 8)),
    BAR.doorbell(0, latest=True),
    BAR.ioregion(1, 1),
    BAR.ioregion(8, 8, bell=4, posted=True, latest=True),
    BAR.ioregion(8, 8, bell=8),
    BAR.block(0, count=MOST_ROWS, stride=4, word=reg(0)),
    BAR.block(0, count=1, stride=12, word=reg(0), other=reg(8)),
    IntX(1),
    IntX(4),
    Msi(1),
    Msi(32),
    MsiX(1),
    MsiX(2048, bar=BAR, offset=8),
    Saved(0),
    Saved((1 << 127) - 1),
    Saved(-(1 << 127)),
    Saved(1.5),
    SavedBytes(1),
    VendorCapability(b"x"),
    VendorCapability(bytes(252), writable=bytes(252)),
    Option(5, least=5, most=5),
    SerialNumber(0),
    SerialNumber((1 << 64) - 1),
    Vsec(0, size=8),
    Vsec(0xFFFF, size=0xFFC, revision=0xF),
    Dvsec(0, 0, size=12),
    Dvsec(0xFFFE, 0xFFFF, size=0xFFC, revision=0xF),
    Ats(1),
    Ats(32),
    Pasid(1),
    Pasid(20),
    Doe((0, 1), (0xFFFF, 0xFF), largest=8),
    Doe(largest=1 << 20),
    Link(2.5, 1),
    Link(64, 32),
    Power(d2=True, wake_from=(PowerState.D0, PowerState.D2, PowerState.D3COLD)),
    ResizableBars({Bar(0, size=1 << 20): (1 << 20,)}),
    Doe(*[(1, kind) for kind in range(1, 256)]),
    ResizableBars({Bar(0, size=1 << 36, bits=64): (1 << 20, 1 << 36)}),
]
BAD: list[Declared] = [
    Bar(-1, size=16),
    Bar(6, size=16),
    Bar(5, size=16, bits=64),
    Bar(0, size=8),
    Bar(0, size=24),
    Bar(0, size=2, io=True),
    Bar(0, size=512, io=True),
    Bar(0, size=4, io=True, bits=64),
    Bar(0, size=4, io=True, prefetchable=True),
    Bar(0, size=16, bits=33),
    Bar(0, size=1 << 32),
    Bar(0, size=16, fill=0x100),
    Bar(0, size=16, fill=-1),
    BAR.area(0, 0),
    BAR.area(0, 4097),
    BAR.area(4095, 4096),
    BAR.reg(0, size=0),
    BAR.reg(0, size=9),
    BAR.reg(0, size=1, reset=0x100),
    BAR.reg(0, size=1, reset=-1),
    BAR.reg(0, size=1, writable=0x100),
    BAR.reg(0, size=1, writable=-1),
    BAR.reg(2),
    BAR.doorbell(0, size=3),
    BAR.doorbell(2),
    BAR.doorbell(0, size=1, match=0x100),
    BAR.doorbell(0, match=-1),
    BAR.doorbell(0, match=1, latest=True),
    BAR.doorbell(0, match=1, values=range(2)),
    BAR.doorbell(0, value=True, values=range(2)),
    BAR.doorbell(0, values=range(0)),
    BAR.doorbell(0, values=range(65)),
    BAR.doorbell(0, size=1, values=range(256, 257)),
    BAR.doorbell(0, values=range(-1, 1)),
    BAR.ioregion(0, 0),
    BAR.ioregion(0, 8, bell=3),
    BAR.ioregion(0, 6, bell=4),
    BAR.ioregion(2, 8, bell=4),
    BAR.ioregion(0, 8, posted=True, latest=True),
    BAR.ioregion(0, 8, bell=4, latest=True),
    BAR.block(0, count=MOST_ROWS + 1, stride=4, word=reg(0)),
    BAR.block(0, count=0, stride=4, word=reg(0)),
    BAR.block(0, count=1, stride=11, word=reg(0), other=reg(8)),
    BAR.block(0, count=1, stride=4),
    BAR.block(0, count=2, stride=6, word=reg(0)),
    IntX(0),
    IntX(5),
    Msi(0),
    Msi(3),
    Msi(64),
    MsiX(0),
    MsiX(2049),
    MsiX(1, offset=4),
    MsiX(1, bar=Bar(0, size=16, io=True)),
    Saved(1 << 127),
    Saved(-(1 << 127) - 1),
    SavedBytes(0),
    VendorCapability(b""),
    VendorCapability(bytes(253)),
    VendorCapability(b"x", writable=b"xx"),
    Option(5, least=6),
    Option(5, most=4),
    Option("5", least=5),
    Option(True, least=0),
    Option(5, choices=(5, 6), least=5),
    Option(5, choices=(6, 7)),
    SerialNumber(-1),
    SerialNumber(1 << 64),
    Vsec(-1, size=8),
    Vsec(0x10000, size=8),
    Vsec(0, size=4),
    Vsec(0, size=10),
    Vsec(0, size=0x1000),
    Vsec(0, size=8, revision=16),
    Vsec(0, size=8, revision=-1),
    Dvsec(0xFFFF, 0, size=12),
    Dvsec(-1, 0, size=12),
    Dvsec(0, 0x10000, size=12),
    Dvsec(0, 0, size=8),
    Dvsec(0, 0, size=12, revision=16),
    Ats(0),
    Ats(33),
    Pasid(0),
    Pasid(21),
    Acs(AccessControl(1)),
    Doe((-1, 1)),
    Doe((0x10000, 1)),
    Doe((1, 0x100)),
    Doe(largest=4),
    Doe(largest=(1 << 20) + 4),
    Doe(*((1, kind) for kind in range(1, 256)), (2, 0)),
    Link(1.0, 1),
    Link(2.5, 0),
    Power(wake_from=(PowerState.D1,)),
    ResizableBars({Bar(0, size=1 << 19): (1 << 19,)}),
    ResizableBars({Bar(0, size=1 << 21): (1 << 20,)}),
    ResizableBars({Bar(0, size=1 << 20): (1 << 20, 1 << 21)}),
    ResizableBars({Bar(0, size=1 << 20): (1 << 20, 1 << 20)}),
    ResizableBars({Bar(0, size=1 << 20): ()}),
    ResizableBars({Bar(0, size=1 << 37, bits=64): (1 << 20, 1 << 37)}),
    ResizableBars({}),
]


@pytest.mark.parametrize("declared", GOOD, ids=lambda each: f"{type(each).__name__}-{GOOD.index(each)}")
def test_a_declaration_may_be_at_its_limits(declared: Any) -> None:
    declared.check("Dut")


@pytest.mark.parametrize("declared", BAD, ids=lambda each: f"{type(each).__name__}-{BAD.index(each)}")
def test_a_declaration_beyond_its_limits_is_refused(declared: Any) -> None:
    with pytest.raises(DeclarationError) as refused:
        declared.check("Dut")
    assert str(refused.value).startswith("Dut.?")


def test_powers_of_two_begin_with_1() -> None:
    assert [number for number in range(-2, 20) if is_power_of_two(number)] == [1, 2, 4, 8, 16]


def test_what_is_left_out_of_a_register_or_doorbell_has_its_default() -> None:
    block = BAR.block(0, count=1, stride=16, word=reg(0), bell=doorbell(8))
    plain, word = BAR.reg(0), block.rows[0]["word"]
    for register in (plain, word):
        assert (register.size, register.access_word, register.reset, register.writable) == (4, "rw", 0, 0xFFFF_FFFF)  # type: ignore[union-attr]
    for bell in (BAR.doorbell(0), block.rows[0]["bell"]):
        assert (bell.size, bell.match, bell.value, bell.values, bell.latest) == (4, None, False, None, False)  # type: ignore[union-attr]
    region = BAR.ioregion(0, 4)
    assert (region.posted, region.bell, region.latest) == (False, 0, False)
    bar = Bar(1, size=16)
    assert (bar.io, bar.bits, bar.prefetchable, bar.fill) == (False, 32, False, 0)
    assert (Msi().count, IntX().pin, MsiX(3).offset) == (1, 1, 0)


@pytest.mark.parametrize(("count", "table", "pending"), [(1, 16, 8), (64, 1024, 8), (65, 1040, 16), (2048, 32768, 256)])
def test_a_table_has_16_bytes_a_vector_and_a_bit(count: int, table: int, pending: int) -> None:
    msix = MsiX(count)
    assert (msix.pba_offset, msix.pba_size, msix.size) == (table, pending, table + pending)


def vector_device(count: int, *bars: Bar) -> type[PciDevice]:
    body = {f"bar{bar.index}": bar for bar in bars}
    return type("Dut", (PciDevice,), {"irq": MsiX(count), **body}, **IDS)


@pytest.mark.parametrize(("count", "size"), [(1, 4096), (253, 4096), (254, 4096), (255, 8192), (2048, 65536)])
def test_a_table_of_its_own_is_in_the_last_free_bar_whose_size_is_enough(count: int, size: int) -> None:
    layout = vector_device(count, Bar(0, size=16)).layout
    assert (layout.msix_bar, layout.bars[5].bar.size, layout.bars[5].bar.name) == (5, size, "irq_table")
    assert layout.bars[5].file_size == layout.bars[0].file_size == 0


def test_a_table_finds_a_bar_that_no_wide_one_takes() -> None:
    wide = Bar(4, size=16, bits=64)
    assert vector_device(1, wide).layout.msix_bar == 3
    bars = [Bar(1, size=16, bits=64), Bar(3, size=16), wide]
    assert vector_device(1, *bars).layout.msix_bar == 0
    with pytest.raises(DeclarationError, match="no BAR is left"):
        vector_device(1, Bar(0, size=16), *bars)


def test_capabilities_have_96_bytes_together_in_whole_words() -> None:
    def device(*sizes: int) -> type[PciDevice]:
        body: dict[str, Any] = {f"cap{number}": VendorCapability(bytes(size)) for number, size in enumerate(sizes)}
        return type("Dut", (PciDevice,), body, **IDS)

    assert len(device(VENDOR_ROOM - 3).layout.vendor) == 1
    assert len(device(*[1] * 24).layout.vendor) == 24
    for sizes in ((VENDOR_ROOM - 2,), [1] * 25, (2, 86)):
        with pytest.raises(DeclarationError, match="96 bytes together"):
            device(*sizes)
    assert len(device(2, 85).layout.vendor) == 2


class Dut(PciDevice, vendor=0x1234, device=0x5678, class_code=0xFF0000):
    mmio = Bar(0, size=1 << 14)
    high = mmio.reg(0x10, size=8)
    low = mmio.reg(0x00)
    bell = mmio.doorbell(0x20, latest=True)
    plain = mmio.doorbell(0x24)
    row = mmio.ioregion(0x100, 0x20, bell=4, posted=True, latest=True)
    other = mmio.ioregion(0x200, 0x20, bell=4, posted=True)
    page = mmio.area(0x1000, 0x1000)
    irq = MsiX(1, bar=mmio, offset=0x2000)
    count = Saved(0)

    @bell.ring
    def rung(self, value: int) -> None: ...

    @plain.ring
    def plain_rung(self) -> None: ...


def test_a_layout_has_its_items_in_order_of_offset() -> None:
    layout = Dut.layout
    bar = layout.bars[0]
    assert [item.name for item in bar.placed] == [
        "low", "high", "bell", "plain", "row", "other", "page", "irq",
    ]  # fmt: skip
    assert bar.file_size == 0x18
    assert [item.name for item in (*bar.areas, *bar.doorbells, *bar.ioregions)] == [
        "page", "bell", "plain", "row", "other",
    ]  # fmt: skip
    assert layout.latest_bells == 1 + 8
    assert (layout.msix_bar, layout.msix, layout.msi, layout.intx) == (0, Dut.irq, None, None)


@pytest.mark.parametrize(
    ("offset", "count", "names"),
    [
        (0x00, 4, ["low"]),
        (0x03, 1, ["low"]),
        (0x03, 2, ["low", "-"]),
        (0x04, 4, ["-"]),
        (0x0F, 1, ["-"]),
        (0x0F, 2, ["-", "high"]),
        (0x17, 1, ["high"]),
        (0x18, 8, ["-"]),
        (0x20, 8, ["bell", "plain"]),
        (0x100, 4, ["row"]),
        (0x11F, 1, ["row"]),
        (0xFFF, 2, ["-", "page"]),
        (0x1FFF, 2, ["page", "the MSI-X table"]),
        (0x2017, 1, ["the MSI-X table"]),
        (0x2018, 1, ["-"]),
        (0x3FFF, 1, ["-"]),
    ],
)
def test_each_byte_has_a_label(offset: int, count: int, names: list[str]) -> None:
    hole = "BAR 0, where nothing is"
    assert Labels(Dut.layout).at(0, offset, count) == [hole if name == "-" else name for name in names]


def test_a_register_is_found_by_exactly_its_bytes() -> None:
    labels = Labels(Dut.layout)
    assert labels.register(0, 0x10, 8) is Dut.high
    for region, offset, count in ((0, 0x10, 4), (0, 0x11, 8), (0, 0x20, 4), (1, 0x10, 8), (7, 0, 4)):
        assert labels.register(region, offset, count) is None
