"""Reads and writes that have passed their checks once are known by their bytes, and no client can tell."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import NO_REPLY, PLAIN, READ_ONLY, REPLY, SIZES, Answer, FakeDevice, Link, message
from protocol.test_transfer import READ, WRITE, access, write
from vfio_user import Command, Disconnected, Late, Message, TimedOut
from vfio_user.accesses import MOST_KNOWN, CheckedAccesses
from vfio_user.loan import Ready

ALONE: Ready = [(7, 1)]
ELSEWHERE: Ready = [(8, 1)]


@pytest.fixture
def plain(link: Link) -> Link:
    """A client that has read four bytes which the device has only to look up: 'bell', at 8."""
    link.device.plain = True
    link.device.memory[PLAIN][8:12] = b"bell"
    link.ok(READ, access(8, 4))
    link.device.calls.clear()
    return link


def waited(link: Link, *happens: Ready, rung: bool = False) -> Ready:
    """What comes of the session's wait, when all this happens."""
    wait = iter(happens).__next__
    return link.session.wait(lambda: wait, ALONE, lambda _: rung)


def test_a_service_that_does_not_probe_ends_with_what_has_arrived_and_says_so(link: Link) -> None:
    link.send(READ, access(8, 4))
    assert not link.session.service(probe=False)
    assert link.receive().payload[-4:] == bytes(4)
    link.send(READ, access(8, 4))
    link.send(READ, access(8, 4))
    assert link.session.service(budget=1, probe=False), "the budget was spent: there may be more"


# -- known accesses

offsets = st.sampled_from([0, 8, 255, 256, 4095, 1 << 63])
counts = st.integers(0, 9)
regions = st.sampled_from([*SIZES, 5, 9])
flags = st.sampled_from([0, NO_REPLY, 0x20, 0x40])


@st.composite
def accesses(draw: st.DrawFn) -> bytes:
    """A read or a write, many of which no client may do."""
    offset, count, region = draw(offsets), draw(counts), draw(regions)
    if draw(st.booleans()):
        return message(READ, access(offset, count, region), flags=draw(flags))
    data = draw(st.binary(min_size=count, max_size=draw(st.sampled_from([count, count + 1]))))
    return message(WRITE, access(offset, count, region) + data, flags=draw(flags))


def answers(link: Link, stream: list[bytes]) -> list[Answer]:
    """All that a server says to these messages."""
    found = []
    for sent in stream:
        link.raw(sent)
        link.session.service()
        while not link.silent:
            found.append(link.receive())
    return found


def introduced(device: FakeDevice) -> Link:
    link = Link(device)
    link.greet()
    return link


@given(st.lists(accesses(), max_size=8))
def test_what_comes_again_is_answered_as_if_it_had_come_for_the_first_time(stream: list[bytes]) -> None:
    with closing(FakeDevice()) as device, closing(FakeDevice()) as other:
        with closing(introduced(device)) as link:
            found = answers(link, stream * 2)
        expected = []
        for sent in stream * 2:
            with closing(introduced(other)) as link:
                expected += answers(link, [sent])
        assert found == expected
        assert device.memory == other.memory
        assert [str(error) for error in device.refusals] == [str(error) for error in other.refusals]


def test_a_read_that_is_known_finds_what_is_there_now(link: Link) -> None:
    for value in (b"one!", b"two!"):
        link.device.memory[PLAIN][8:12] = value
        assert link.ok(READ, access(8, 4))[16:] == value


def test_rings_go_before_a_read_that_is_known(link: Link) -> None:
    link.ok(READ, access(8, 4))
    link.ok(READ, access(8, 4))
    assert link.device.calls == ["before_reply", "read"] * 2


def test_a_posted_write_that_is_known_does_not_wait_for_rings(link: Link) -> None:
    for _ in range(2):
        link.send(WRITE, write(8, b"ring"), flags=NO_REPLY)
        link.session.service()
    assert link.device.calls == ["write"] * 2
    assert link.silent


@pytest.mark.parametrize("at", range(1, 36))
def test_a_write_that_is_known_may_come_in_pieces(link: Link, at: int) -> None:
    link.ok(WRITE, write(8, b"once"))
    whole = message(WRITE, write(8, b"more"))
    link.raw(whole[:at])
    link.session.service()
    assert link.device.memory[PLAIN][8:12] == b"once"
    link.raw(whole[at:])
    link.session.service()
    assert link.receive().flags == REPLY
    assert link.device.memory[PLAIN][8:12] == b"more"


def test_descriptors_with_an_access_that_is_known_are_closed(link: Link) -> None:
    link.ok(READ, access(8, 4))
    before = len(os.listdir("/proc/self/fd"))
    assert link.ok(READ, access(8, 4), fds=[1, 2]) == access(8, 4) + bytes(4)
    assert link.refused(READ, access(8, 4), fds=[1] * 17) == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_refused_is_not_known(link: Link) -> None:
    assert [link.refused(WRITE, write(8, b"ring", READ_ONLY)) for _ in range(2)] == [errno.EPERM] * 2
    assert link.device.memory[READ_ONLY][8:12] == bytes(4)


def test_a_device_that_fails_at_an_access_that_is_known_is_reported(link: Link) -> None:
    link.ok(READ, access(8, 4))
    link.device.on_read = lambda *_: bytes(3)
    assert link.refused(READ, access(8, 4)) == errno.EIO
    link.device.on_read = lambda *_: b"%d" % (1 // 0)
    assert link.refused(READ, access(8, 4)) == errno.EIO
    assert [type(error) for error in link.device.failures] == [ZeroDivisionError]


def test_no_more_than_so_many_accesses_are_kept(device: FakeDevice) -> None:
    device.plain = True
    accesses = CheckedAccesses(device, 4096)
    for offset, count in itertools.product(range(MOST_KNOWN // 2), (1, 2, 4)):
        accesses.read(Message(1, READ, 0, 0, memoryview(access(offset, count)), []))
        assert 1 <= len(accesses.known) <= MOST_KNOWN


def test_writes_among_many_are_kept_and_counted_and_no_more_than_so_many(device: FakeDevice) -> None:
    accesses = CheckedAccesses(device, 4096)
    writes = [(at, count) for at, count in itertools.product(range(MOST_KNOWN // 2), (1, 2, 4))]
    for at, (offset, count) in enumerate(writes):
        accesses.many_come()
        checked = accesses.write_among_many(PLAIN, offset, count)
        assert accesses.write_among_many(PLAIN, offset, count) is checked
        checked.times += 1
        assert sum(device.accesses.values()) == at // MOST_KNOWN * MOST_KNOWN, "reported when the table is emptied"
    accesses.settle()
    assert device.accesses == {(PLAIN, offset, count, True): 1 for offset, count in writes}


# -- reads during the wait


def test_reads_that_only_look_at_memory_are_answered_during_the_wait(plain: Link) -> None:
    def happens() -> Ready:
        plain.device.memory[PLAIN][8] += 1
        if plain.device.memory[PLAIN][8] == ord("f"):
            return ELSEWHERE
        plain.send(READ, access(8, 4), id=plain.device.memory[PLAIN][8])
        return ALONE

    assert plain.session.wait(lambda: happens, ALONE, lambda _: False) == ELSEWHERE
    for first in (b"c", b"d", b"e"):
        assert plain.receive() == (first[0], READ, REPLY, 0, access(8, 4) + first + b"ell", [])
    plain.session.settle()
    assert plain.device.accesses == {(PLAIN, 8, 4, False): 4}


def test_a_read_is_not_answered_during_the_wait_when_something_has_rung(plain: Link) -> None:
    plain.send(READ, access(8, 4))
    assert waited(plain, ALONE, rung=True) == ALONE
    assert plain.silent
    plain.session.service()
    assert plain.receive().payload[16:] == b"bell"
    assert plain.device.calls == ["before_reply", "read"]


@pytest.mark.parametrize(
    "sent",
    [
        message(READ, access(12, 4)),
        message(READ, access(8, 4)) * 2,
        message(WRITE, write(8, b"four")),
        message(READ, access(8, 4), flags=NO_REPLY) + message(READ, access(8, 4)),
    ],
    ids=["another read", "two of them", "a write", "one with no reply"],
)
def test_whatever_else_comes_during_the_wait_is_left_for_service(plain: Link, sent: bytes) -> None:
    plain.raw(sent)
    assert waited(plain, ALONE) == ALONE
    assert plain.silent
    plain.session.service()
    assert plain.receive().flags == REPLY


# -- other known accesses during the wait


@pytest.fixture
def known(link: Link) -> Link:
    """A client that has read, written and posted four bytes at 8, each of which runs device code."""
    link.ok(READ, access(8, 4))
    link.ok(WRITE, write(8, b"once"))
    link.send(WRITE, write(8, b"ring"), flags=NO_REPLY)
    link.session.service()
    link.device.calls.clear()
    return link


def test_known_accesses_that_run_device_code_are_done_during_the_wait_one_after_the_other(known: Link) -> None:
    sent: Iterator[Callable[[], None]] = iter(
        (
            lambda: known.send(WRITE, write(8, b"more")),
            lambda: known.send(READ, access(8, 4)),
            lambda: known.send(WRITE, write(8, b"post"), flags=NO_REPLY),
        )
    )

    def happens() -> Ready:
        do = next(sent, None)
        if do is None:
            return ELSEWHERE
        do()
        return ALONE

    assert known.session.wait(lambda: happens, ALONE, lambda _: False) == ELSEWHERE
    assert known.receive().flags == REPLY
    assert known.receive().payload[16:] == b"more"
    assert known.silent
    assert known.device.memory[PLAIN][8:12] == b"post"
    assert known.device.calls == ["write", "read", "write"]


def test_after_device_code_the_wait_is_the_one_that_there_is_then(known: Link) -> None:
    waits = [lambda: ALONE]
    known.device.on_write = lambda *_: waits.append(lambda: ELSEWHERE)  # a timer was set
    known.send(WRITE, write(8, b"more"))
    assert known.session.wait(lambda: waits[-1], ALONE, lambda _: False) == ELSEWHERE
    assert known.receive().flags == REPLY


@pytest.mark.parametrize(("command", "payload"), [(WRITE, write(8, b"more")), (READ, access(8, 4))])
def test_a_known_access_is_left_for_service_when_something_has_rung(known: Link, command: int, payload: bytes) -> None:
    known.send(command, payload)
    assert waited(known, ALONE, rung=True) == ALONE
    assert known.silent
    known.session.service()
    assert known.receive().flags == REPLY
    assert known.device.calls == ["before_reply", "write" if command == WRITE else "read"]


def test_a_known_posted_write_is_done_during_the_wait_whatever_has_rung(known: Link) -> None:
    known.send(WRITE, write(8, b"more"), flags=NO_REPLY)
    assert waited(known, ALONE, ELSEWHERE, rung=True) == ELSEWHERE
    assert known.silent
    assert known.device.calls == ["write"]


@pytest.mark.parametrize("late", [False, True], ids=["answered", "answered later"])
def test_the_wait_ends_when_a_command_has_come_while_device_code_had_guest_memory_by_message(
    known: Link, late: bool
) -> None:
    def dma(*_: object) -> bytes:
        known.send(WRITE, write(8, b"more"), id=9)
        known.send(Command.DMA_WRITE, bytes(16), id=1, flags=REPLY)  # of no bytes: the session has asked for the layout
        known.send(Command.DMA_READ, struct.pack("<QQ4s", 0, 4, b"data"), id=2, flags=REPLY)
        data = known.session.dma_read(0, 4)
        if late:
            raise Late
        return data

    known.device.on_read = dma
    known.send(READ, access(8, 4))
    assert waited(known, ALONE) == []
    assert known.session.waiting
    known.session.service()
    answered = [] if late else [(READ, 1)]
    expected = [(Command.DMA_READ, 2), *answered, (WRITE, 9)]
    assert [(came.command, came.id) for came in (known.receive() for _ in expected)] == expected


@pytest.mark.parametrize("at", [1, 31, 32, 35])
def test_a_known_write_that_comes_in_pieces_during_the_wait_is_done_once(known: Link, at: int) -> None:
    whole = message(WRITE, write(8, b"more"))
    known.raw(whole[:at])
    assert waited(known, ALONE) == ALONE
    known.session.service()
    known.raw(whole[at:])
    assert waited(known, ALONE) == ALONE
    known.session.service()
    assert known.receive().flags == REPLY
    assert known.device.calls == ["before_reply", "write"]


@pytest.mark.parametrize("fds", [0, 1])
def test_known_writes_that_come_together_or_with_descriptors_are_left_for_service(known: Link, fds: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    known.send(WRITE, write(8, b"more"), fds=[1] * fds)
    known.send(WRITE, write(8, b"last"))
    assert waited(known, ALONE) == ALONE
    assert known.silent
    known.session.service()
    assert [known.receive().flags for _ in range(2)] == [REPLY] * 2
    assert known.device.memory[PLAIN][8:12] == b"last"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_known_write_during_the_wait_that_fails_is_answered_and_the_next_one_comes(known: Link) -> None:
    known.device.on_write = lambda *_: 1 // 0  # type: ignore[assignment]
    known.send(WRITE, write(8, b"more"))
    assert waited(known, ALONE, ELSEWHERE) == ELSEWHERE
    assert known.receive().error == errno.EIO
    known.device.on_write = known.device.store
    known.send(WRITE, write(8, b"last"))
    assert waited(known, ALONE, ELSEWHERE) == ELSEWHERE
    assert known.receive().flags == REPLY
    assert known.device.memory[PLAIN][8:12] == b"last"


@pytest.mark.parametrize("at", [1, 16, 31])
def test_a_read_that_comes_in_pieces_during_the_wait_is_answered_once(plain: Link, at: int) -> None:
    whole = message(READ, access(8, 4))
    plain.raw(whole[:at])
    assert waited(plain, ALONE) == ALONE
    plain.session.service()
    plain.raw(whole[at:])
    assert waited(plain, ALONE) == ALONE
    plain.session.service()
    assert plain.receive().payload[16:] == b"bell"
    assert plain.silent


def test_descriptors_that_come_during_the_wait_are_left_for_service(plain: Link) -> None:
    before = len(os.listdir("/proc/self/fd"))
    plain.send(READ, access(8, 4), fds=[1])
    assert waited(plain, ALONE) == ALONE
    plain.session.service()
    assert plain.receive().payload[16:] == b"bell"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_leaves_during_the_wait_is_gone_and_what_it_read_is_counted(plain: Link) -> None:
    plain.send(READ, access(8, 4))
    happens: Iterator[Callable[[], None]] = iter([lambda: None, lambda: plain.sock.shutdown(socket.SHUT_WR)])

    def wait() -> Ready:
        next(happens)()
        return ALONE

    with pytest.raises(Disconnected):
        plain.session.wait(lambda: wait, ALONE, lambda _: False)
    plain.session.settle()
    assert plain.device.accesses == {(PLAIN, 8, 4, False): 2}


def test_a_client_that_does_not_read_is_waited_for_as_ever(device: FakeDevice) -> None:
    device.plain = True
    with closing(Link(device, timeout=0.05)) as link:
        link.greet()
        link.ok(READ, access(0, 4096))
        sent = 0

        def happens() -> Ready:
            nonlocal sent
            sent += 1
            link.send(READ, access(0, 4096))
            return ALONE

        with pytest.raises(TimedOut, match="does not read REGION_READ"):
            link.session.wait(lambda: happens, ALONE, lambda _: False)
        assert sent > 1
