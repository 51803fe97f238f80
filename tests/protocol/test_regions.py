from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import ABSENT, AREAS, MAPPED, PLAIN, READ_ONLY, REPLY, SIZES, WRITE_ONLY, Link
from vfio_user import Command, DeviceFlags, DeviceInfo, MmapArea, ProtocolError, RegionFlags, RegionIndex, RegionInfo

INFO = Command.DEVICE_GET_REGION_INFO
SPARSE_INFO = bytes.fromhex(
    "50000000" "0f000000" "01000000" "20000000"  # argsz 80, flags READ|WRITE|MMAP|CAPS, index 1, cap_offset 32
    "0040000000000000" "0000000000000000"  # size 0x4000, offset 0
    "0100" "0100" "00000000" "02000000" "00000000"  # SPARSE_MMAP version 1, no next; 2 areas
    "0010000000000000" "0010000000000000"  # 0x1000+0x1000
    "0030000000000000" "0010000000000000"  # 0x3000+0x1000
)  # fmt: skip
"""What the text says of BAR1 of the fake device: 80 bytes."""


def request(index: int, argsz: int = 32) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def with_areas(*areas: tuple[int, int], at: int = 32, size: int = 0x4000, count: int | None = None) -> memoryview:
    """A reply with a sparse mmap capability."""
    body = b"".join(struct.pack("<QQ", *area) for area in areas)
    chain = struct.pack("<HHIII", 1, 1, 0, len(areas) if count is None else count, 0)
    return memoryview(struct.pack("<IIIIQQ", 48 + len(body), 0xF, 1, at, size, 0) + chain + body)


# -- the device


def test_device_info_tells_of_nine_regions_and_five_kinds_of_interrupt(link: Link) -> None:
    payload = link.ok(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert payload == struct.pack("<IIII", 16, 3, 9, 5)
    assert DeviceInfo.unpack(memoryview(payload)) == DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)


@pytest.mark.parametrize("payload", [b"", bytes(15), struct.pack("<IIII", 15, 0, 0, 0)])
def test_a_device_info_request_of_the_wrong_size_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(Command.DEVICE_GET_INFO, payload) == errno.EINVAL


def test_a_short_device_info_reply_is_refused() -> None:
    with pytest.raises(ProtocolError, match="DEVICE_GET_INFO reply: 15 bytes, expected 16"):
        DeviceInfo.unpack(memoryview(bytes(15)))


# -- regions


def test_region_info_of_a_plain_region_is_the_bare_struct(link: Link) -> None:
    answer = link.ask(INFO, request(PLAIN))
    assert answer.payload == struct.pack("<IIIIQQ", 32, 3, PLAIN, 0, SIZES[PLAIN], 0)
    assert answer.fds == []


@pytest.mark.parametrize("index", [ABSENT, RegionIndex.ROM, RegionIndex.VGA])
def test_a_region_that_is_not_there_has_size_0_and_no_rights(link: Link, index: int) -> None:
    assert link.ok(INFO, request(index)) == struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)


@pytest.mark.parametrize(("index", "right"), [(READ_ONLY, 1), (WRITE_ONLY, 2)])
def test_rights_are_told(link: Link, index: int, right: int) -> None:
    assert struct.unpack_from("<II", link.ok(INFO, request(index))) == (32, right)


def test_sparse_areas_are_told_as_the_text_has_them(link: Link) -> None:
    assert link.ok(INFO, request(MAPPED, argsz=80)) == SPARSE_INFO


def test_sparse_areas_come_with_the_fd_behind_them(link: Link) -> None:
    (fd,) = link.ask(INFO, request(MAPPED, argsz=80)).fds
    assert os.fstat(fd).st_ino == os.fstat(link.device.area).st_ino


def test_a_client_that_takes_no_fds_is_offered_nothing_to_map(stranger: Link) -> None:
    stranger.introduce(max_msg_fds=0)
    answer = stranger.ask(INFO, request(MAPPED, argsz=80))
    assert answer.payload == struct.pack("<IIIIQQ", 32, 3, MAPPED, 0, SIZES[MAPPED], 0)
    assert answer.fds == []


@pytest.mark.parametrize("argsz", [32, 48, 79])
def test_too_small_an_argsz_gets_the_struct_alone_and_the_size_needed(link: Link, argsz: int) -> None:
    answer = link.ask(INFO, request(MAPPED, argsz))
    assert answer.flags == REPLY
    assert answer.payload == struct.pack("<IIIIQQ", 80, 7, MAPPED, 0, SIZES[MAPPED], 0)
    assert answer.fds == []


def test_a_larger_argsz_than_needed_changes_nothing(link: Link) -> None:
    assert link.ok(INFO, request(MAPPED, argsz=4096)) == SPARSE_INFO


@pytest.mark.parametrize("payload", [b"", request(PLAIN)[:31], request(PLAIN, argsz=31)])
def test_a_region_info_request_of_the_wrong_size_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(INFO, payload) == errno.EINVAL


@pytest.mark.parametrize("index", [9, 10, 0xFFFF_FFFF])
def test_a_region_beyond_the_last_is_refused(link: Link, index: int) -> None:
    assert link.refused(INFO, request(index)) == errno.EINVAL
    assert f"index {index}, expected 0 to 8" in str(link.device.refusals[0])


# -- encode and decode


def test_the_texts_bytes_are_read() -> None:
    info, need = RegionInfo.unpack(memoryview(SPARSE_INFO))
    flags = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
    assert info == RegionInfo(MAPPED, flags, SIZES[MAPPED], 0, AREAS)
    assert need == 80


def test_a_capability_before_the_areas_is_passed_over() -> None:
    kind = struct.pack("<HHIII", 2, 1, 48, 5, 6)  # TYPE, next at 48
    head = struct.pack("<IIIIQQ", 80, 0xF, 1, 32, 0x4000, 0)
    chain = struct.pack("<HHIII", 1, 1, 0, 1, 0) + struct.pack("<QQ", 0x1000, 0x1000)
    assert RegionInfo.unpack(memoryview(head + kind + chain))[0].areas == (MmapArea(0x1000, 0x1000),)


def test_a_chain_without_areas_has_none() -> None:
    reply = struct.pack("<IIIIQQ", 48, 0xF, 1, 32, 0x4000, 0) + struct.pack("<HHIII", 2, 1, 0, 5, 6)
    assert RegionInfo.unpack(memoryview(reply))[0].areas == ()


def test_a_chain_that_goes_in_a_circle_is_refused() -> None:
    reply = struct.pack("<IIIIQQ", 40, 0xF, 1, 32, 0x4000, 0) + struct.pack("<HHI", 2, 1, 32)
    with pytest.raises(ProtocolError, match="a circle"):
        RegionInfo.unpack(memoryview(reply))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (memoryview(bytes(31)), "31 bytes, expected at least 32"),
        (with_areas((0, 4096), at=16), "capability at 16"),
        (with_areas((0, 4096), at=1000), "capability at 1000"),
        (with_areas((0, 4096), at=60), "capability at 60"),
        (with_areas((0, 4096), at=0xFFFF_FFFF), "capability at 4294967295"),
        (with_areas((0, 4096))[:40], "cut short"),
        (with_areas((0, 4096), count=2), "nr_areas 2 does not fit"),
        (with_areas((0, 4096), count=0xFFFF_FFFF), "nr_areas 4294967295 does not fit"),
        (with_areas((0x1000, 0x4000)), "outside the region"),
        (with_areas(((1 << 64) - 4096, 4096)), "outside the region"),
        (with_areas((0, 0)), "outside the region"),
    ],
)
def test_a_reply_that_cannot_be_is_refused(reply: memoryview, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        RegionInfo.unpack(reply)


@given(st.data())
def test_region_info_is_read_as_it_was_written(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 1 << 63))
    starts = data.draw(st.lists(st.integers(0, size - 1), max_size=8))
    areas = tuple(MmapArea(at, data.draw(st.integers(1, size - at))) for at in starts)
    flags = RegionFlags(data.draw(st.integers(0, 7)))
    info = RegionInfo(data.draw(st.integers(0, 8)), flags, size, data.draw(st.integers(0, (1 << 64) - 1)), areas)
    payload = info.pack(1 << 20)
    assert RegionInfo.unpack(memoryview(payload)) == (info, len(payload))


@given(st.binary(min_size=32, max_size=120))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        info, _ = RegionInfo.unpack(memoryview(payload))
    except ProtocolError:
        return
    assert all(area.offset + area.size <= info.size for area in info.areas)
