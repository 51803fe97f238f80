from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import ABSENT, PLAIN, REPLY, FakeDevice, Link
from vfio_user import (
    Capabilities,
    Command,
    IoEventFd,
    IoRegionFd,
    Mechanism,
    ProtocolError,
    ShadowIoEventFd,
    SubRegion,
    dialect,
)
from vfio_user.io_fds import MOST_ENTRIES, descriptors, mechanism, pack_sub_regions, unpack_sub_regions

IO_FDS = Command.DEVICE_GET_REGION_IO_FDS
SIZE = 4096  # of the region in these tests

EVENT_40 = bytes.fromhex("1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 4200000000000000")
EVENT_48 = bytes.fromhex(
    "1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 0000000000000000 4200000000000000"
)
REGION_40 = bytes.fromhex("2000000000000000 0800000000000000 01000000 01000000 03000000 00000000 8877665544332211")
REGION_48 = REGION_40 + bytes(8)
SHADOW_48 = bytes.fromhex(
    "3000000000000000 0200000000000000 00000000 02000000 03000000 01000000 0008000000000000 0700000000000000"
)
"""Entries by the byte. 40: the ratified text's tables; 48: libvfio-user's headers, with datamatch at 40."""
EVENT = IoEventFd(0x10, 4, 70, datamatch=0x42)
REGION = IoRegionFd(0x20, 8, 71, 0x1122334455667788, pio=True, posted_writes=True)
SHADOW = ShadowIoEventFd(0x30, 2, 70, 71, 0x800, datamatch=7, pio=True)


def request(index: int = PLAIN, argsz: int = 4096, flags: int = 0, count: int = 0) -> bytes:
    return struct.pack("<IIII", argsz, flags, index, count)


def reply(*entries: bytes, **changes: int) -> memoryview:
    """A server's reply, with any field of its head changed."""
    body = b"".join(entries)
    head = {"argsz": 16 + len(body), "flags": 0, "index": PLAIN, "count": len(entries)} | changes
    return memoryview(struct.pack("<IIII", *head.values()) + body)


def entry(**changes: int) -> bytes:
    """A good ioeventfd entry, with any field changed."""
    good = {"offset": 0x10, "size": 4, "fd_index": 0, "type": 0, "flags": 1, "padding": 0, "last": 0x42}
    return struct.pack("<QQIIIIQ", *(good | changes).values())


# -- entries by the byte


@pytest.mark.parametrize(("size", "event", "region"), [(40, EVENT_40, REGION_40), (48, EVENT_48, REGION_48)])
def test_an_array_is_written_and_read_by_the_byte(size: int, event: bytes, region: bytes) -> None:
    assert pack_sub_regions([EVENT, REGION], size) == (event + region, [70, 71])
    assert unpack_sub_regions(reply(event, region), [70, 71], SIZE) == [EVENT, REGION]


def test_a_shadow_ioeventfd_is_read_by_the_byte() -> None:
    assert unpack_sub_regions(reply(SHADOW_48), [70, 71], SIZE) == [SHADOW]


def test_entries_share_an_fd_through_its_index() -> None:
    subs: list[SubRegion] = [IoEventFd(0, 4, 9), IoRegionFd(8, 8, 5, 1), IoEventFd(16, 4, 9), IoRegionFd(24, 8, 5, 2)]
    data, fds = pack_sub_regions(subs)
    assert fds == [9, 5]
    assert [struct.unpack_from("<I", data, 40 * at + 16)[0] for at in range(4)] == [0, 1, 0, 1]
    assert unpack_sub_regions(reply(*(data[at : at + 40] for at in range(0, 160, 40))), fds, SIZE) == subs


def test_a_shadow_ioeventfd_does_not_fit_in_40_bytes() -> None:
    with pytest.raises(ProtocolError, match="entries of 48 bytes"):
        pack_sub_regions([SHADOW], 40)


def test_datamatch_0_is_not_no_datamatch() -> None:
    data, fds = pack_sub_regions([IoEventFd(0, 4, 3, datamatch=0)])
    assert unpack_sub_regions(reply(data), fds, SIZE) == [IoEventFd(0, 4, 3, datamatch=0)]


widths = st.sampled_from([1, 2, 4, 8])
u64 = st.integers(0, (1 << 64) - 1)
events = st.builds(
    IoEventFd, st.integers(0, SIZE - 8), widths, st.integers(3, 9), st.none() | u64, st.booleans(), st.booleans()
)
regions = st.builds(
    IoRegionFd, st.integers(0, 2048), st.integers(1, 2048), st.integers(3, 9), u64, st.booleans(), st.booleans()
)
shadows = st.builds(
    ShadowIoEventFd,
    st.integers(0, SIZE - 8),
    widths,
    st.integers(3, 9),
    st.integers(3, 9),
    u64,
    st.none() | u64,
    st.booleans(),
)


@given(st.lists(events | regions, max_size=20), st.sampled_from([40, 48]))
def test_sub_regions_are_read_as_they_were_written(subs: list[SubRegion], size: int) -> None:
    data, fds = pack_sub_regions(subs, size)
    assert unpack_sub_regions(reply(data, count=len(subs)), fds, SIZE) == subs


@given(st.lists(events | regions | shadows, min_size=1, max_size=20))
def test_shadow_ioeventfds_are_read_as_they_were_written(subs: list[SubRegion]) -> None:
    data, fds = pack_sub_regions(subs, 48)
    assert unpack_sub_regions(reply(data, count=len(subs)), fds, SIZE) == subs
    assert set(fds) == set().union(*map(descriptors, subs))


# -- the server


@pytest.fixture
def ringing(link: Link, eventfd: Callable[[], int]) -> Link:
    """A device with three doorbells in BAR0, two of which share an fd."""
    one, other = eventfd(), eventfd()
    link.device.subs[PLAIN] = [IoEventFd(0, 0, one), IoEventFd(8, 4, other, 5), IoEventFd(16, 4, one, pio=True)]
    return link


def test_a_whole_reply_has_all_entries_and_each_fd_once(ringing: Link) -> None:
    answer = ringing.ask(IO_FDS, request())
    assert struct.unpack_from("<IIII", answer.payload) == (16 + 3 * 40, 0, PLAIN, 3)
    assert len(answer.payload) == 16 + 3 * 40
    first, second, third = unpack_sub_regions(memoryview(answer.payload), answer.fds, SIZE)
    assert len(answer.fds) == 2
    assert first.fd == third.fd != second.fd


def test_the_fd_that_arrives_is_the_one_that_the_device_listens_to(ringing: Link) -> None:
    answer = ringing.ask(IO_FDS, request())
    os.eventfd_write(answer.fds[1], 3)
    assert os.eventfd_read(ringing.device.subs[PLAIN][1].fd) == 3


@pytest.mark.parametrize("argsz", [16, 17, 56, 16 + 3 * 40 - 1])
def test_too_small_an_argsz_gets_the_info_struct_alone(ringing: Link, argsz: int) -> None:
    answer = ringing.ask(IO_FDS, request(argsz=argsz))
    assert answer.flags == REPLY
    assert answer.payload == struct.pack("<IIII", 16 + 3 * 40, 0, PLAIN, 3)
    assert answer.fds == []


def test_just_enough_argsz_is_enough(ringing: Link) -> None:
    assert len(ringing.ask(IO_FDS, request(argsz=16 + 3 * 40)).fds) == 2


@pytest.mark.parametrize("index", [PLAIN, ABSENT, 8])
def test_a_region_without_doorbells_has_count_0_and_no_fds(link: Link, index: int) -> None:
    answer = link.ask(IO_FDS, request(index))
    assert (answer.payload, answer.fds) == (struct.pack("<IIII", 16, 0, index, 0), [])


@pytest.mark.parametrize(
    "bad",
    [request(flags=1), request(count=1), request(9), request(argsz=15), request()[:15]],
    ids=["flags", "count", "index", "argsz", "short"],
)
def test_a_request_that_cannot_be_is_refused(ringing: Link, bad: bytes) -> None:
    assert ringing.refused(IO_FDS, bad) == errno.EINVAL


def test_libvfio_users_entries_are_written_for_those_who_want_them(
    device: FakeDevice, eventfd: Callable[[], int]
) -> None:
    device.subs[PLAIN] = [IoEventFd(0x10, 4, eventfd(), datamatch=0x42)]
    with closing(Link(device, dialect=dialect("ratified", 48))) as link:
        link.greet()
        assert link.ask(IO_FDS, request()).payload[16:] == EVENT_48


@pytest.mark.parametrize(("most", "offsets"), [(0, []), (1, [0, 16]), (2, [0, 8, 16])])
def test_sub_regions_whose_fds_the_client_cannot_take_are_left_out(
    stranger: Link, eventfd: Callable[[], int], most: int, offsets: list[int]
) -> None:
    one, other = eventfd(), eventfd()
    stranger.device.subs[PLAIN] = [IoEventFd(0, 0, one), IoEventFd(8, 4, other), IoEventFd(16, 4, one)]
    stranger.introduce(max_msg_fds=most)
    answer = stranger.ask(IO_FDS, request())
    assert [sub.offset for sub in unpack_sub_regions(memoryview(answer.payload), answer.fds, SIZE)] == offsets


def test_a_client_that_names_no_limit_gets_one_fd(stranger: Link, eventfd: Callable[[], int]) -> None:
    stranger.device.subs[PLAIN] = [IoEventFd(8 * at, 4, eventfd()) for at in range(3)]
    stranger.greet(b"")
    assert len(stranger.ask(IO_FDS, request()).fds) == 1


def test_a_sub_region_is_of_memory_and_any_value_unless_it_says_otherwise() -> None:
    for sub in (IoEventFd(0, 4, 5), ShadowIoEventFd(0, 4, 5, 6, 0)):
        assert (sub.datamatch, sub.pio) == (None, False)
    assert not IoRegionFd(0, 4, 5, 0).pio


def test_both_fds_of_a_shadow_ioeventfd_count(device: FakeDevice, eventfd: Callable[[], int]) -> None:
    device.subs[PLAIN] = [ShadowIoEventFd(0, 4, eventfd(), eventfd(), 0)]
    with closing(
        Link(device, limits=Capabilities(io_fds=frozenset({Mechanism.SHADOW})), dialect=dialect("ratified", 48))
    ) as link:
        link.introduce(max_msg_fds=1, io_fds=frozenset({"shadow"}))
        assert link.ask(IO_FDS, request()).payload == struct.pack("<IIII", 16, 0, PLAIN, 0)


# -- the io_fds capability


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (None, {"ioeventfd", "ioregionfd"}),  # what the ratified text has
        ([], set()),
        (["ioeventfd"], {"ioeventfd"}),
        (["ioregionfd", "shadow"], {"ioregionfd", "shadow"}),
    ],
)
def test_only_mechanisms_that_the_client_knows_are_offered(
    stranger: Link, eventfd: Callable[[], int], words: list[str] | None, kinds: set[str]
) -> None:
    fd = eventfd()
    stranger.device.subs[PLAIN] = [IoEventFd(0, 4, fd), IoRegionFd(8, 8, fd, 0), ShadowIoEventFd(16, 4, fd, fd, 0)]
    capabilities = {} if words is None else {"io_fds": words}
    stranger.greet(json.dumps({"capabilities": capabilities}).encode() + b"\0")
    answer = stranger.ask(IO_FDS, request())
    assert stranger.device.mechanisms == kinds
    assert {mechanism(sub) for sub in unpack_sub_regions(memoryview(answer.payload), answer.fds, SIZE)} == kinds


# -- a reply that cannot be


BAD_REPLIES = [
    (reply(entry())[:15], "15 bytes, expected at least 16"),
    (reply(entry(), flags=1), "flags 0x1, expected 0"),
    (reply(entry(), argsz=57), "argsz 57, but only 56 bytes came"),
    (reply(entry(), argsz=55), "is no stride of 40 or 48"),
    (reply(entry(), argsz=3), "is no stride of 40 or 48"),
    (reply(entry(), argsz=0), "is no stride of 40 or 48"),
    (reply(entry() + bytes(4)), "is no stride of 40 or 48"),
    (reply(entry()[:32]), "is no stride of 40 or 48"),
    (reply(entry(), entry(), count=3), "is no stride of 40 or 48"),
    (reply(entry(), count=2), "is no stride of 40 or 48"),
    (reply(entry(), count=MOST_ENTRIES + 1), f"count {MOST_ENTRIES + 1}, at most {MOST_ENTRIES}"),
    (reply(entry(), count=0xFFFF_FFFF), "count 4294967295"),
    (reply(entry(offset=SIZE)), "entry 0: 0x1000.* outside the region, which has 0x1000 bytes"),
    (reply(entry(), entry(offset=SIZE - 3)), "entry 1: .* outside the region"),
    (reply(entry(offset=(1 << 64) - 2)), "outside the region"),
    (reply(entry(type=1, flags=0, size=1 << 63)), "outside the region"),
    (reply(entry(fd_index=1)), "fd_index 1, but 1 fds came"),
    (reply(entry(fd_index=0xFFFF_FFFF)), "fd_index 4294967295"),
    (reply(entry(type=3)), "type 3, expected 0"),
    (reply(entry(type=0xFFFF_FFFF)), "type 4294967295"),
    (reply(entry(flags=4)), "ioeventfd flags 0x4"),
    (reply(entry(flags=0x10)), "ioeventfd flags 0x10"),
    (reply(entry(type=1, flags=4)), "ioregionfd flags 0x4"),
    (reply(entry(size=3)), "ioeventfd size 3"),
    (reply(entry(size=16)), "ioeventfd size 16"),
    (reply(entry(size=0)), "or 0 without datamatch"),
    (reply(entry(type=1, flags=0, size=0)), "size 0 needs posted writes"),
    (reply(entry(type=2)), "needs an entry of 48 bytes"),
    (reply(SHADOW_48), "shadow_mem_fd_index 1, but 1 fds came"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_REPLIES, ids=[why for _, why in BAD_REPLIES])
def test_a_reply_that_cannot_be_is_refused(bad: memoryview, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        unpack_sub_regions(bad, [70], SIZE)


def test_bytes_behind_argsz_are_passed_over() -> None:
    data = memoryview(bytes(reply(EVENT_40)) + bytes(100))
    assert unpack_sub_regions(data, [70], SIZE) == [EVENT]


@given(st.binary(max_size=40), st.integers(0, 3), st.sampled_from([40, 48]))
def test_any_entry_is_read_or_refused(start: bytes, fds: int, size: int) -> None:
    try:
        (sub,) = unpack_sub_regions(reply(start.ljust(size, b"\0")), list(range(fds)), SIZE)
    except ProtocolError:
        return
    assert sub.offset + sub.size <= SIZE
    assert descriptors(sub) <= set(range(fds))
