from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import IRQ_COUNTS, FakeDevice, Link, fd_count
from protocol.set_irqs import BOOL, EVENTFD, INTX, MASK, MSIX, NONE, SET, TRIGGER, UNMASK, count, request
from vfio_user import Command, IrqFlags, IrqIndex, IrqInfo, ProtocolError, SetIrqs


@pytest.fixture
def vectors(link: Link, eventfd: Callable[[], int]) -> list[int]:
    """An eventfd for each of the eight MSI-X vectors."""
    fds = [eventfd() for _ in range(8)]
    link.ok(SET, request(EVENTFD | TRIGGER, count=8), fds=fds)
    return fds


def ring_all(link: Link, fds: list[int]) -> list[int]:
    """Trigger every vector; which of the eventfds were signalled."""
    for vector in range(len(fds)):
        link.session.irqs.trigger(MSIX, vector)
    return [vector for vector, fd in enumerate(fds) if count(fd)]


# -- information


@pytest.mark.parametrize("index", range(5))
def test_irq_info_tells_how_many_there_are(link: Link, index: int) -> None:
    payload = link.ok(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
    assert payload == struct.pack("<IIII", 16, 1, index, IRQ_COUNTS[index])
    assert IrqInfo.unpack(memoryview(payload)) == IrqInfo(index, IRQ_COUNTS[index], IrqFlags.EVENTFD)


@pytest.mark.parametrize("payload", [struct.pack("<IIII", 16, 0, 5, 0), struct.pack("<IIII", 15, 0, 0, 0), bytes(8)])
def test_an_irq_info_request_that_cannot_be_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(Command.DEVICE_GET_IRQ_INFO, payload) == errno.EINVAL


def test_a_short_irq_info_reply_is_refused() -> None:
    with pytest.raises(ProtocolError, match="15 bytes, expected 16"):
        IrqInfo.unpack(memoryview(bytes(15)))


# -- eventfds to trigger


def test_an_interrupt_is_a_1_written_to_its_eventfd(link: Link, vectors: list[int]) -> None:
    assert link.session.irqs.trigger(MSIX, 3)
    assert [count(fd) for fd in vectors] == [0, 0, 0, 1, 0, 0, 0, 0]


def test_assigning_tells_the_device(link: Link, vectors: list[int]) -> None:
    assert link.device.calls[-1] == f"irqs_changed {MSIX}"
    assert link.session.irqs.enabled(MSIX)
    assert not link.session.irqs.enabled(IrqIndex.MSI)


def test_the_server_keeps_an_eventfd_of_its_own(link: Link) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    spare = os.dup(fd)
    link.ok(SET, request(EVENTFD | TRIGGER), fds=[fd])
    os.close(fd)
    assert link.session.irqs.trigger(MSIX, 0)
    assert count(spare) == 1
    os.close(spare)


def test_an_eventfd_takes_the_place_of_the_one_before(
    link: Link, vectors: list[int], eventfd: Callable[[], int]
) -> None:
    fresh, before = eventfd(), fd_count()
    link.ok(SET, request(EVENTFD | TRIGGER, start=2), fds=[fresh])
    link.session.irqs.trigger(MSIX, 2)
    assert (count(fresh), count(vectors[2])) == (1, 0)
    assert fd_count() == before


@given(st.integers(0, 7).flatmap(lambda start: st.tuples(st.just(start), st.integers(1, 8 - start))))
def test_any_range_is_de_assigned_and_no_other(chosen: tuple[int, int]) -> None:
    start, length = chosen
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]
    with closing(FakeDevice()) as device, closing(Link(device)) as link:
        link.greet()
        link.ok(SET, request(EVENTFD | TRIGGER, count=8), fds=fds)
        link.ok(SET, request(EVENTFD | TRIGGER, start=start, count=length))
        assert ring_all(link, fds) == [at for at in range(8) if not start <= at < start + length]
    for fd in fds:
        os.close(fd)


def test_a_range_of_eventfds_is_assigned_at_its_start(link: Link, eventfd: Callable[[], int]) -> None:
    one, other = eventfd(), eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER, start=5, count=2), fds=[one, other])
    assert [link.session.irqs.trigger(MSIX, vector) for vector in range(4, 8)] == [False, True, True, False]
    assert (count(one), count(other)) == (1, 1)


def test_int32_data_beside_the_eventfds_is_passed_over(link: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER, data=struct.pack("<i", 5)), fds=[fd])
    assert link.session.irqs.trigger(MSIX, 0)


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (3, 2), (8, 1)])
def test_some_eventfds_are_neither_all_nor_none(
    link: Link, eventfd: Callable[[], int], given: int, wanted: int
) -> None:
    fds = [eventfd() for _ in range(given)]
    before = fd_count()
    assert link.refused(SET, request(EVENTFD | TRIGGER, count=wanted), fds=fds) == errno.EINVAL
    assert fd_count() == before


def test_an_fd_that_is_no_eventfd_is_refused(
    link: Link, eventfd: Callable[[], int], memfd: Callable[[int], int]
) -> None:
    good = eventfd()
    assert link.refused(SET, request(EVENTFD | TRIGGER, count=2), fds=[good, memfd(8)]) == errno.EINVAL
    assert not link.session.irqs.enabled(MSIX)


@pytest.mark.usefixtures("impatient")
def test_an_eventfd_that_blocks_and_is_full_holds_nobody_up(link: Link) -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    link.ok(SET, request(EVENTFD | TRIGGER), fds=[fd])
    assert link.session.irqs.trigger(MSIX, 0)
    os.close(fd)


# -- disabling


def test_count_0_disables_the_whole_index(link: Link, vectors: list[int]) -> None:
    link.ok(SET, request(NONE | TRIGGER, count=0))
    assert ring_all(link, vectors) == []
    assert not link.session.irqs.enabled(MSIX)


def test_disabling_forgets_masks_and_what_was_pending(link: Link, vectors: list[int]) -> None:
    link.ok(SET, request(NONE | MASK, start=1))
    link.session.irqs.trigger(MSIX, 1)
    link.ok(SET, request(NONE | TRIGGER, count=0))
    link.ok(SET, request(EVENTFD | TRIGGER, count=8), fds=vectors)
    assert count(vectors[1]) == 0
    assert link.session.irqs.trigger(MSIX, 1)


def test_an_index_without_interrupts_can_be_disabled(link: Link) -> None:
    link.ok(SET, request(NONE | TRIGGER, IrqIndex.REQ, count=0))


@pytest.mark.parametrize(("flags", "start"), [(NONE | TRIGGER, 1), (NONE | MASK, 0), (BOOL | TRIGGER, 0), (36, 0)])
def test_count_0_means_nothing_else(link: Link, flags: int, start: int) -> None:
    assert link.refused(SET, request(flags, start=start, count=0)) == errno.EINVAL


# -- loop-back, and masks


def test_none_triggers_each_of_a_range(link: Link, vectors: list[int]) -> None:
    link.ok(SET, request(NONE | TRIGGER, start=2, count=3))
    assert [count(fd) for fd in vectors] == [0, 0, 1, 1, 1, 0, 0, 0]


def test_bool_triggers_those_that_are_true(link: Link, vectors: list[int]) -> None:
    link.ok(SET, request(BOOL | TRIGGER, start=1, count=4, data=b"\1\0\0\xff"))
    assert [count(fd) for fd in vectors] == [0, 1, 0, 0, 1, 0, 0, 0]


def test_a_loop_back_without_an_eventfd_is_kept(link: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    link.ok(SET, request(NONE | TRIGGER))
    link.ok(SET, request(EVENTFD | TRIGGER), fds=[fd])
    assert count(fd) == 1


@pytest.mark.parametrize(
    ("flags", "data", "masked"),
    [(NONE | MASK, b"", [2, 3, 4]), (BOOL | MASK, b"\1\0\1", [2, 4])],
)
def test_masked_interrupts_are_held_back(
    link: Link, vectors: list[int], flags: int, data: bytes, masked: list[int]
) -> None:
    link.ok(SET, request(flags, start=2, count=3, data=data))
    assert ring_all(link, vectors) == [at for at in range(8) if at not in masked]
    assert [at for at in range(8) if link.session.irqs.pending(MSIX, at)] == masked


@pytest.mark.parametrize(("flags", "data", "freed"), [(NONE | UNMASK, b"", [2, 3]), (BOOL | UNMASK, b"\0\1", [3])])
def test_unmasking_delivers_what_was_held_back_once(
    link: Link, vectors: list[int], flags: int, data: bytes, freed: list[int]
) -> None:
    link.ok(SET, request(NONE | MASK, count=8))
    assert ring_all(link, vectors) == []
    ring_all(link, vectors)
    link.ok(SET, request(flags, start=2, count=2, data=data))
    assert [count(fd) for fd in vectors] == [int(at in freed) for at in range(8)]
    assert not link.session.irqs.pending(MSIX, 3)


def test_unmasking_with_nothing_held_back_delivers_nothing(link: Link, vectors: list[int]) -> None:
    link.ok(SET, request(NONE | MASK, count=8))
    link.ok(SET, request(NONE | UNMASK, count=8))
    assert [count(fd) for fd in vectors] == [0] * 8


def test_without_an_eventfd_an_interrupt_waits_for_one(link: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    assert not link.session.irqs.trigger(MSIX, 4)
    assert link.session.irqs.pending(MSIX, 4)
    link.ok(SET, request(EVENTFD | TRIGGER, start=4), fds=[fd])
    assert count(fd) == 1


def test_a_mask_outlives_a_new_eventfd(link: Link, vectors: list[int], eventfd: Callable[[], int]) -> None:
    link.ok(SET, request(NONE | MASK))
    fresh = eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER), fds=[fresh])
    assert not link.session.irqs.trigger(MSIX, 0)
    assert count(fresh) == 0


# -- requests that cannot be


@pytest.mark.parametrize(
    "flags",
    [0, NONE, TRIGGER, NONE | BOOL | TRIGGER, NONE | MASK | TRIGGER, 7 | 32, NONE | TRIGGER | 0x40, 0x8000_0021],
)
def test_flags_are_one_kind_of_data_and_one_action(link: Link, flags: int) -> None:
    assert link.refused(SET, request(flags)) == errno.EINVAL
    assert "expected one kind of data and one action" in str(link.device.refusals[0])


@pytest.mark.parametrize(
    ("index", "start", "length"),
    [
        (5, 0, 1),
        (0xFFFF_FFFF, 0, 1),
        (MSIX, 8, 1),
        (MSIX, 7, 2),
        (MSIX, 0, 9),
        (MSIX, 1, 0xFFFF_FFFF),
        (MSIX, 0xFFFF_FFFF, 1),
        (IrqIndex.REQ, 0, 1),
    ],
)
def test_a_range_outside_the_index_is_refused(link: Link, index: int, start: int, length: int) -> None:
    assert link.refused(SET, request(NONE | TRIGGER, index, start, length)) == errno.EINVAL


@pytest.mark.parametrize("data", [b"", b"\1"])
def test_bool_data_has_a_byte_for_each(link: Link, data: bytes) -> None:
    assert link.refused(SET, request(BOOL | TRIGGER, count=2, data=data)) == errno.EINVAL


@pytest.mark.parametrize("payload", [b"", request(33)[:19], struct.pack("<IIIII", 21, 33, 2, 0, 1), bytes(20)])
def test_a_request_of_the_wrong_size_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(SET, payload) == errno.EINVAL


@pytest.mark.parametrize("flags", [NONE | TRIGGER, NONE | MASK])
def test_fds_come_with_eventfd_data_only(link: Link, eventfd: Callable[[], int], flags: int) -> None:
    assert link.refused(SET, request(flags), fds=[eventfd()]) == errno.EINVAL


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_message_signalled_interrupts_are_not_masked_by_eventfd(
    link: Link, eventfd: Callable[[], int], action: int
) -> None:
    assert link.refused(SET, request(EVENTFD | action), fds=[eventfd()]) == errno.ENOTSUP


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        found = SetIrqs.unpack(memoryview(payload))
    except ProtocolError:
        return
    assert payload[4:].startswith(found.pack()[4:])


# -- when the client leaves


def test_all_is_given_back_when_the_session_closes(link: Link, eventfd: Callable[[], int]) -> None:
    before = fd_count()
    fd = eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER, count=8), fds=[fd] * 8)
    link.ok(SET, request(EVENTFD | TRIGGER, INTX), fds=[fd])
    link.ok(SET, request(EVENTFD | UNMASK, INTX), fds=[fd])
    link.session.close()
    assert link.device.watched == {}
    assert fd_count() == before  # one eventfd more, one socket less
