"""A state file describes itself. The description is checked: the file may come from anywhere."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire import Bar, MsiX, PciDevice, Saved, SavedBytes, StateError, reg
from bellwire.model.description import MOST_BYTES, Description, Item, Kind, parse
from bellwire.model.source import HEADER, Header
from bellwire.testing import Guest

SAMPLE = Path(__file__).parent / "samples" / "sample-1.state"


class Sample(PciDevice, vendor=0x1234, device=0x51, class_code=0xFF0000, name="sample"):
    mmio = Bar(0, size=256)
    word = mmio.reg(0)
    wide = mmio.reg(8, size=8)
    go = mmio.doorbell(0x10)
    screen = Bar(2, size=1 << 14)
    frame = screen.area(4096, 8192)
    irq = MsiX(3)
    number = Saved(0)
    yes = Saved(False)
    ratio = Saved(0.0)
    store = SavedBytes(5000)

    @go.ring
    def rang(self) -> None: ...


class Edited:
    """A scope of its own, as a file that was edited is a module of its own."""

    class Later(PciDevice, vendor=0x1234, device=0x51, class_code=0xFF0000, name="sample"):
        """The same device, edited: it looks the same to a guest."""

        irq = MsiX(3)
        store = SavedBytes(6000)
        more = SavedBytes(10)
        ratio = Saved(1.5)
        number = Saved(0.0)
        screen = Bar(2, size=1 << 14)
        frame = screen.area(4096, 8192)
        mmio = Bar(0, size=256)
        go = mmio.doorbell(0x10)
        wide = mmio.reg(0x20, size=8)
        word = mmio.reg(0x18, size=2)

        @go.ring
        def rang(self) -> None: ...


def fill(guest: Guest[Any]) -> None:
    """What the stored sample holds."""
    device = guest.device
    guest.write(Sample.word, 0x1234)
    guest.write(Sample.wide, 0x1122_3344_5566_7788)
    guest.ring(Sample.go)
    guest.ring(Sample.go)
    guest.config_write(0x3C, 11, 1)
    device.number, device.yes, device.ratio = -5, True, 0.25
    device.store[4990:5000] = b"0123456789"
    device.frame[8000:8007] = b"picture"


def check(device: Any) -> None:
    assert (device.word, device.wide, device.go.rung) == (0x1234, 0x1122_3344_5566_7788, 2)
    assert (device.number, device.ratio) == (-5, 0.25)
    assert bytes(device.store[4990:5000]) == b"0123456789"
    assert bytes(device.frame[8000:8008]) == b"picture\0"
    assert device.bus_master
    assert device.irq.enabled
    assert device.core.config.read(0x3C, 1) == b"\x0b"


@pytest.mark.parametrize("kind", [Sample, Edited.Later])
def test_a_stored_state_of_format_1_can_be_read(kind: type[PciDevice]) -> None:
    """It was written when format 1 was new. Never write it anew: a state that users have stored must be readable."""
    with Guest(kind) as guest:
        guest.restore(SAMPLE.read_bytes())
        check(guest.device)


def test_a_state_says_where_everything_lies() -> None:
    with Guest(Sample) as guest:
        fill(guest)
        snapshot = guest.snapshot()
    size = HEADER.unpack_from(snapshot)[5]
    found = parse(snapshot[HEADER.size : HEADER.size + size], HEADER.size)
    assert found.device == "sample"
    assert found.seen["device id"] == "0x0051"
    kinds = {item.name: (item.kind, item.size, item.bar) for item in found.items}
    assert kinds == {
        "config space": (Kind.CONFIG, 4096, -1),
        "word": (Kind.REGISTER, 4, -1),
        "wide": (Kind.REGISTER, 8, -1),
        "go": (Kind.COUNT, 8, -1),
        "MSI-X table": (Kind.TABLE, 48, -1),
        "MSI-X pending bits": (Kind.PENDING, 8, -1),
        "number": (Kind.INT, 16, -1),
        "yes": (Kind.BOOL, 16, -1),
        "ratio": (Kind.FLOAT, 16, -1),
        "store": (Kind.BYTES, 5000, -1),
        "frame": (Kind.AREA, 8192, 2),
    }


def snapshot_of(said: bytes, records: bytes = b"", at: int = 8192) -> bytes:
    return HEADER.pack(*Header.of(at, said)) + said + records


def described(**changes: Any) -> bytes:
    made = Description("sample", 8192, {}, (Item("word", Kind.REGISTER, 4096, 4),))
    return msgspec.json.encode(msgspec.structs.replace(made, **changes))


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (b"", "0 bytes are no state"),
        (bytes(100), "not the state of a Bellwire device"),
        (struct.pack("<II", 0x5354_4C42, 1) + bytes(92), "not the state of a Bellwire device"),
        (HEADER.pack(*Header.of(8192, b"")._replace(format=2)), "has format 2, and this Bellwire reads format 1"),
        (HEADER.pack(*Header.of(8192, b"")._replace(size=MOST_BYTES + 1)), "which cannot be"),
        (HEADER.pack(*Header.of(1 << 60, b"")), "which cannot be"),
        (snapshot_of(described())[:-1], "cut short in its description"),
        (snapshot_of(described()).replace(b"sample", b"simple"), "damaged: its description has another checksum"),
        (snapshot_of(b"{}"), "does not describe itself: .*device"),
        (snapshot_of(b"[" * 100_000), "does not describe itself"),
        (snapshot_of(b"\xff"), "does not describe itself"),
        (snapshot_of(described(size=8)), "has no room for its header"),
        (snapshot_of(described(size=1 << 50)), "does not describe itself: .*size"),
        (snapshot_of(described(device="other")), "of a device named other, not of sample"),
        (snapshot_of(described(items=(Item("word", Kind.REGISTER, 8190, 4),))), "word wrongly: 4 bytes at 0x1ffe"),
        (snapshot_of(described(items=(Item("word", Kind.REGISTER, 0, 4),))), "word wrongly: 4 bytes at 0x0"),
        (snapshot_of(described(items=(Item("word", Kind.REGISTER, 4096, 9),))), "word wrongly: a register of 9 bytes"),
        (snapshot_of(described(items=(Item("n", Kind.INT, 4096, 4),))), "n wrongly: a int of 4 bytes"),
        (snapshot_of(described(items=(Item("n", Kind.INT, 4096, 16, 3),))), "n wrongly: BAR 3"),
        (snapshot_of(described(items=(Item("n", Kind.AREA, 0, 4096),))), "n wrongly: BAR -1"),
        (snapshot_of(described(items=2 * (Item("n", Kind.INT, 4096, 16),))), "two items have one name"),
        (snapshot_of(described(items=(Item("n" * 5000, Kind.INT, 4096, 16),))), "does not describe itself: .*length"),
        (snapshot_of(described(), b"x"), "1 bytes are left"),
    ],
)
def test_a_state_that_is_none_is_refused_by_name(state: bytes, why: str) -> None:
    with Guest(Sample) as guest:
        before = guest.snapshot()
        with pytest.raises(StateError, match=why):
            guest.restore(state)
        assert guest.snapshot() == before


@pytest.fixture(scope="module")
def later() -> Iterator[Guest[Any]]:
    with Guest(Edited.Later) as guest:
        yield guest


@given(more=st.binary(max_size=40), at=st.integers(0, 1 << 16), byte=st.integers(0, 255))
def test_a_damaged_state_is_refused_or_restored(later: Guest[Any], more: bytes, at: int, byte: int) -> None:
    state = bytearray(SAMPLE.read_bytes())
    state[at % len(state)] = byte
    size = HEADER.unpack_from(state)[5]
    if len(state) >= HEADER.size + size:  # let the damage through to what is behind the checksum
        struct.pack_into("<I", state, HEADER.size - 4, zlib.crc32(state[HEADER.size : HEADER.size + size]))
    with contextlib.suppress(StateError):
        later.restore(bytes(state + more))


def test_a_state_describes_the_largest_block() -> None:
    class Rows(PciDevice, vendor=0x1234, device=0x52, class_code=0xFF0000, name="rows"):
        mmio = Bar(0, size=1 << 20)
        rows = mmio.block(0, count=4096, stride=8, member=reg(0))

    with Guest(Rows) as guest:
        guest.device.rows[4095].member = 7
        snapshot = guest.snapshot()
        guest.reset()
        guest.restore(snapshot)
        assert guest.device.rows[4095].member == 7
        assert len(snapshot) < MOST_BYTES
