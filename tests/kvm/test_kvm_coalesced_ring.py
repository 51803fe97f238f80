"""The ring of coalesced writes, as the kernel fills it and as it never would."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from itertools import cycle, islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvm_ioctls import CoalescedRing, CoalescedWrite, KvmError
from kvm_ioctls.coalesced import PAGE

MOST = 170
ENTRY = struct.Struct("=QII8s")
WRITES = st.builds(
    CoalescedWrite,
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)
WORDS, WORDS_OF_8 = st.integers(0, (1 << 32) - 1), st.binary(min_size=8, max_size=8)
LENGTHS = st.integers(0, 9) | WORDS


class Page(bytearray):
    """The page, filled as the kernel fills it."""

    def __init__(self) -> None:
        super().__init__(PAGE)

    @property
    def indices(self) -> tuple[int, int]:
        first, last = struct.unpack_from("=II", self)
        return first, last

    @indices.setter
    def indices(self, both: tuple[int, int]) -> None:
        struct.pack_into("=II", self, 0, *both)

    def entry(self, index: int, phys_addr: int, length: int, pio: int, data: bytes) -> None:
        ENTRY.pack_into(self, 8 + index * ENTRY.size, phys_addr, length, pio, data)

    def put(self, write: CoalescedWrite) -> None:
        first, last = self.indices
        self.entry(last, write.phys_addr, len(write.data), int(write.pio), write.data)
        self.indices = first, (last + 1) % MOST


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def ring(page: Page) -> Iterator[CoalescedRing]:
    ring = CoalescedRing(memoryview(page))
    yield ring
    ring.close()


def drained(ring: CoalescedRing) -> list[CoalescedWrite]:
    taken: list[CoalescedWrite] = []
    assert ring.drain(taken.extend) == len(taken)
    return taken


@given(start=st.integers(0, MOST - 1), writes=st.lists(WRITES, max_size=CoalescedRing.ROOM))
@example(start=MOST - 1, writes=[CoalescedWrite(0xD000_0000, b"ab", False)] * CoalescedRing.ROOM)
def test_what_the_kernel_puts_comes_out_in_order_wherever_the_ring_stands(
    start: int, writes: list[CoalescedWrite]
) -> None:
    page = Page()
    page.indices = start, start
    ring = CoalescedRing(memoryview(page))
    assert ring.empty
    for write in writes:
        page.put(write)
    assert ring.empty is not bool(writes)
    assert drained(ring) == writes
    assert ring.empty
    assert drained(ring) == []


def test_a_place_is_free_only_when_its_write_has_been_dealt_with(page: Page, ring: CoalescedRing) -> None:
    page.put(CoalescedWrite(0xD000_0000, b"abcd", False))
    seen = []
    ring.drain(lambda writes: seen.append((len(writes), ring.empty)))
    assert seen == [(1, False)]
    assert ring.empty


def test_what_comes_meanwhile_waits_for_the_next_time(page: Page, ring: CoalescedRing) -> None:
    early, late = (CoalescedWrite(0xD000_0000, data, False) for data in (b"1", b"2"))
    page.put(early)
    ring.drain(lambda writes: page.put(late))
    assert drained(ring) == [late]


def test_writes_that_nobody_could_take_are_not_offered_again(page: Page, ring: CoalescedRing) -> None:
    page.put(CoalescedWrite(0xD000_0000, b"abcd", False))

    def fail(writes: list[CoalescedWrite]) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        ring.drain(fail)
    assert ring.empty


@pytest.mark.parametrize(("first", "last"), [(MOST, 0), (0, MOST), (0xFFFF_FFFF, 0xFFFF_FFFF)])
def test_an_index_beyond_the_page_is_an_error(page: Page, ring: CoalescedRing, first: int, last: int) -> None:
    page.indices = first, last
    with pytest.raises(KvmError, match=f"first {first} and last {last}, expected less than 170") as caught:
        drained(ring)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("length", [0, 9, 0xFFFF_FFFF])
def test_a_length_that_no_write_has_is_an_error_once(page: Page, ring: CoalescedRing, length: int) -> None:
    page.entry(0, 0xD000_0000, length, 0, b"abcd")
    page.indices = 0, 1
    with pytest.raises(KvmError, match=f"0xd0000000 has len {length}, expected 1 to 8"):
        drained(ring)
    assert drained(ring) == []


def test_an_address_space_that_does_not_exist_is_an_error(page: Page, ring: CoalescedRing) -> None:
    page.entry(0, 0x3F8, 1, 2, b"a")
    page.indices = 0, 1
    with pytest.raises(KvmError, match="0x3f8 has pio 2, expected 0 or 1"):
        drained(ring)


@given(
    st.lists(st.binary(max_size=ENTRY.size) | st.builds(ENTRY.pack, WORDS, LENGTHS, LENGTHS, WORDS_OF_8), min_size=1),
    st.integers(0, MOST + 1) | WORDS,
    st.integers(0, MOST + 1) | WORDS,
)
def test_hostile_contents_are_refused_or_read_within_their_bounds(entries: list[bytes], first: int, last: int) -> None:
    page, pieces = Page(), cycle(entry.ljust(ENTRY.size, b"\0") for entry in entries)
    page[8:] = b"".join(islice(pieces, MOST)).ljust(PAGE - 8, b"\xff")
    page.indices = first, last
    before = page[8:]
    ring = CoalescedRing(memoryview(page))
    try:
        writes = drained(ring)
    except KvmError:
        pass
    else:
        assert len(writes) == (last - first) % MOST
        assert all(1 <= len(write.data) <= 8 for write in writes)
    assert page[8:] == before
    assert ring.empty or max(first, last) >= MOST


def test_a_ring_is_a_page() -> None:
    with pytest.raises(ValueError, match="has 100 bytes, expected a page of 4096"):
        CoalescedRing(memoryview(bytearray(100)))
