"""The codec of vhost-user: what is sent has the text's layout, and what comes may be anything."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.vhost.errors import BackendLost
from bellwire.vhost.messages import (
    LARGEST_PAYLOAD,
    Header,
    Inflight,
    MemoryRegion,
    Request,
    VringAddress,
    VringState,
    header,
    named,
    pack_config,
    pack_table,
    u64,
    unpack_config,
)

NUMBERS = st.integers(0, (1 << 32) - 1)
LONG = st.integers(0, (1 << 64) - 1)


@given(NUMBERS, st.integers(0, LARGEST_PAYLOAD), st.booleans(), st.booleans())
def test_a_header_comes_back(request: int, size: int, need_reply: bool, reply: bool) -> None:
    found = Header.unpack(header(request, size, need_reply=need_reply, reply=reply))
    assert found == (request, 1 | 4 * reply | 8 * need_reply, size)


def test_a_header_is_laid_out_as_the_text_has_it() -> None:
    assert header(Request.SET_VRING_KICK, 8, need_reply=True) == bytes.fromhex("0c000000 09000000 08000000")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("<III", 1, 6, 0), "GET_FEATURES: version 2, expected 1"),
        (struct.pack("<III", 1, 5, 4097), "GET_FEATURES: a payload of 4097 bytes, at most 4096 expected"),
        (struct.pack("<III", 99, 5, 4097), "request 99: a payload"),
        (b"short", "a header of 5 bytes, expected 12"),
    ],
)
def test_a_header_that_cannot_be_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BackendLost, match=why):
        Header.unpack(data)


@given(st.binary(max_size=64))
def test_any_payload_is_decoded_or_refused(payload: bytes) -> None:
    for decode in (
        lambda: u64(payload, "x"),
        lambda: VringState.unpack(payload, "x"),
        lambda: Inflight.unpack(payload),
        lambda: unpack_config(payload, 20),
        lambda: Header.unpack(payload),
    ):
        with contextlib.suppress(BackendLost):
            decode()


@given(LONG, LONG, LONG, LONG)
def test_a_region_is_four_numbers_and_alone_has_padding_before_it(guest: int, size: int, user: int, at: int) -> None:
    numbers = guest, size, user, at
    region = MemoryRegion(*numbers)
    assert region.pack() == struct.pack("<QQQQ", *numbers)
    assert region.pack_single() == bytes(8) + region.pack()
    assert pack_table([region, region]) == struct.pack("<II", 2, 0) + 2 * region.pack()


def test_a_rings_address_has_the_used_ring_before_the_available_one() -> None:
    packed = VringAddress(3, desc=0x10, used=0x20, avail=0x30).pack()
    assert struct.unpack("<IIQQQQ", packed) == (3, 0, 0x10, 0x20, 0x30, 0)


@given(NUMBERS, NUMBERS)
def test_a_rings_state_comes_back(ring: int, number: int) -> None:
    assert VringState.unpack(VringState(ring, number).pack(), "x") == (ring, number)


def test_memory_for_what_is_in_flight_comes_back() -> None:
    place = Inflight(1 << 20, 4096, 2, 256)
    assert Inflight.unpack(place.pack()) == place
    assert len(place.pack()) == 20


def test_a_configuration_comes_back_or_is_said_not_to_be_there() -> None:
    assert unpack_config(pack_config(0, b"abcd"), 4) == b"abcd"
    assert unpack_config(b"", 4) is None
    assert unpack_config(pack_config(0, b""), 4) is None
    for wrong in (pack_config(0, b"abc"), pack_config(4, b"abcd"), struct.pack("<III", 0, 9, 0) + b"abcd"):
        with pytest.raises(BackendLost, match="GET_CONFIG"):
            unpack_config(wrong, 4)


def test_a_request_without_a_name_has_its_number() -> None:
    assert (named(11), named(77)) == ("GET_VRING_BASE", "request 77")
