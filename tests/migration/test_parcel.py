"""The data of a migration: read in each version, and refused by name if anything is wrong with it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import Bar, PciDevice, Saved, SavedBytes, StateError
from bellwire.model import succession
from bellwire.model.parcel import CHECKSUM, FORMAT, FRAME, HEAD, Kind, Parcel, unpack
from bellwire.testing import Guest

SAMPLE = Path(__file__).with_name("samples") / "format-1.bin"


class Kept(PciDevice, vendor=0x1234, device=0x5A3E, class_code=0x088000, name="kept"):
    """What the sample is of."""

    mmio = Bar(0, size=8192)
    value = mmio.reg(0)
    bell = mmio.doorbell(8)
    area = mmio.area(0x1000, 4096)
    count = Saved(0)
    text = SavedBytes(8192)

    @bell.ring
    def rang(self) -> None: ...


def filled(guest: Guest[Kept]) -> Guest[Kept]:
    guest.write(Kept.value, 0x1234_5678)
    guest.ring(Kept.bell)
    guest.device.area[:5] = b"area."
    guest.device.count = -5
    guest.device.text[5000:5004] = b"text"
    return guest


def look(guest: Guest[Kept]) -> tuple[object, ...]:
    device = guest.device
    return guest.read(Kept.value), device.bell.rung, bytes(device.area), device.count, bytes(device.text)


def load(guest: Guest[Kept], data: bytes) -> None:
    """As a worker does."""
    succession.load(guest.device.core, unpack(data))


@pytest.fixture(scope="module")
def data() -> bytes:
    with Guest(Kept) as guest:
        return Parcel().pack(filled(guest).snapshot(), last=True)


def test_the_sample_of_format_1_is_read() -> None:
    assert FORMAT == 1, "keep the sample of each format, and make one of the new"
    with Guest(Kept) as guest, Guest(Kept) as expected:
        load(guest, SAMPLE.read_bytes())
        assert look(guest) == look(filled(expected))


def test_a_newer_version_of_the_device_takes_it_by_name(data: bytes) -> None:
    class Newer(PciDevice, vendor=0x1234, device=0x5A3E, class_code=0x088000, name="kept"):
        mmio = Bar(0, size=8192)
        more = mmio.reg(4, reset=9)
        value = mmio.reg(0)
        bell = mmio.doorbell(8)
        area = mmio.area(0x1000, 4096)
        text = SavedBytes(8200)
        count = Saved(0)
        new = Saved(3)

        @bell.ring
        def rang(self) -> None: ...

    with Guest(Newer) as guest:
        succession.load(guest.device.core, unpack(data))
        device = guest.device
        assert (guest.read(Newer.value), guest.read(Newer.more), device.count, device.new) == (0x1234_5678, 9, -5, 3)


def reframed(data: bytes, change: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]]) -> bytes:
    """``data`` with other frames, whose checksums are right."""
    frames, at = [], HEAD.size
    while at < len(data):
        kind, size = FRAME.unpack_from(data, at)
        at += FRAME.size + CHECKSUM.size
        frames.append((kind, data[at : at + size]))
        at += size
    parts = [data[: HEAD.size]]
    for kind, payload in change(frames):
        front = FRAME.pack(kind, len(payload))
        parts += [front, CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(front))), payload]
    return b"".join(parts)


class Foreign(PciDevice, vendor=0x1234, device=0x5A3E, class_code=0x088000, name="foreign"):
    """Another device."""

    mmio = Bar(0, size=8192)


def of_another(_: bytes) -> bytes:
    with Guest(Foreign) as guest:
        return Parcel().pack(guest.snapshot(), last=True)


def torn(data: bytes) -> bytes:
    return reframed(
        data, lambda frames: [(2, frames[0][1][:8] + struct.pack("<Q", 1) + frames[0][1][16:]), *frames[1:]]
    )


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda data: b"", "cut short in its header"),
    "no data of ours": (lambda data: b"x" * 100, "not the migration data of a Bellwire device"),
    "a newer format": (lambda data: data[:4] + struct.pack("<I", 2) + data[8:], "format 2, and this .* format 1"),
    "the end is missing": (lambda data: data[: -FRAME.size - CHECKSUM.size], "cut short: it has no end"),
    "cut short": (lambda data: data[:-1], "cut short"),
    "cut in the middle": (lambda data: data[: len(data) // 2], "cut short in a frame"),
    "something behind": (lambda data: data + b"x", "cut short in the front"),
    "a frame behind": (lambda data: reframed(data, lambda frames: frames + frames[-1:]), "behind the last"),
    "two states": (lambda data: reframed(data, lambda frames: frames[:1] + frames), "STATE that does not belong"),
    "no state": (lambda data: reframed(data, lambda frames: frames[1:]), "END that does not belong"),
    "an unknown frame": (lambda data: reframed(data, lambda frames: [(9, b""), *frames]), "frame of kind 9"),
    "pages behind the state": (
        lambda data: reframed(data, lambda frames: [frames[0], (Kind.PAGES, b"")]),
        "PAGES that does not belong",
    ),
    "another device": (of_another, "a device named foreign, not of kept"),
    "torn": (torn, "is torn"),
    "half a record": (lambda data: reframed(data, lambda frames: [(1, b"half"), *frames]), "a record of 4 bytes"),
    "a record too long": (
        lambda data: reframed(data, lambda frames: [(1, struct.pack("<IQQ", 0, 0, 100)), *frames]),
        "a record of 100 bytes, and 0 are left",
    ),
    "a record outside": (
        lambda data: reframed(data, lambda frames: [(1, struct.pack("<IQQ", 1, 0, 1) + b"x"), *frames]),
        "outside its range",
    ),
}


@pytest.mark.parametrize(("spoil", "why"), WRONG.values(), ids=WRONG.keys())
def test_wrong_data_is_refused_by_name_and_the_device_is_as_it_was(
    data: bytes, spoil: Callable[[bytes], bytes], why: str
) -> None:
    with Guest(Kept) as guest:
        guest.write(Kept.value, 42)
        before = guest.snapshot()
        with pytest.raises(StateError, match=why):
            load(guest, spoil(data))
        assert guest.snapshot() == before


@given(st.data())
def test_any_flipped_bits_are_refused(data: bytes, draw: st.DataObject) -> None:
    spoilt = bytearray(data)
    for at in draw.draw(st.lists(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3, unique=True)):
        spoilt[at // 8] ^= 1 << at % 8
    with pytest.raises(StateError):
        unpack(bytes(spoilt))


@given(st.data())
def test_any_part_is_refused(data: bytes, draw: st.DataObject) -> None:
    end = draw.draw(st.integers(0, len(data) - 1))
    with pytest.raises(StateError):
        unpack(data[:end])


@settings(max_examples=20)
@given(st.lists(st.dictionaries(st.integers(0, 3), st.binary(max_size=40), max_size=4), min_size=1, max_size=4))
def test_what_was_sent_before_and_what_has_changed_make_the_state(steps: list[dict[int, bytes]]) -> None:
    with Guest(Kept) as guest:
        parcel, sent = Parcel(), []
        for step in steps:
            for page, content in step.items():
                guest.device.text[2000 * page : 2000 * page + 40] = content.ljust(40, b"\0")
            sent.append(parcel.pack(guest.snapshot(), last=False))
        sent.append(parcel.pack(guest.snapshot(), last=True))
        assert len(sent[-1]) < len(sent[0]) + 200
        with Guest(Kept) as other:
            load(other, b"".join(sent))
            assert other.snapshot() == guest.snapshot()
