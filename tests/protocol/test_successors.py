"""What a session leaves in memory that outlives it: masks, pending triggers, and reads that wait for a late reply."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest

from protocol.backend import DEADLINE, HEADER, PLAIN, FakeDevice
from vfio_user import Channel, Command, Estate, IrqIndex, IrqTable, Journal, Kept, Late, Session, SetIrqs, SetIrqsFlags
from vfio_user.constants import HEADER_SIZE
from vfio_user.journal import BUSY, HEAD, LATE_READS, SPARE
from vfio_user.transfer import REGION_ACCESS

LARGEST = HEADER_SIZE + (1 << 20) + SPARE


def table(flags: memoryview) -> IrqTable:
    return IrqTable([1, 0, 4], lambda fd, callback: None, lambda fd: None, None, None, flags)


def mask(irqs: IrqTable, vector: int, action: SetIrqsFlags = SetIrqsFlags.MASK) -> None:
    irqs.apply(SetIrqs(SetIrqsFlags.DATA_NONE | action, IrqIndex.MSIX, vector, 1), [])


def test_a_masked_vector_stays_masked_and_a_pending_trigger_comes_once_it_is_not(eventfd: Callable[[], int]) -> None:
    flags, fd = memoryview(bytearray(8)), eventfd()
    before, after = table(flags), table(flags)
    mask(before, 2)
    assert not before.trigger(IrqIndex.MSIX, 2)
    after.take_over(Estate({"irq": Kept("irq 2 2", {"index": 2, "vector": 2}, (os.dup(fd),))}))
    assert after.fd(IrqIndex.MSIX, 2) is None
    assert after.pending(IrqIndex.MSIX, 2)
    mask(after, 2, SetIrqsFlags.UNMASK)
    assert os.eventfd_read(fd) == 1
    assert after.trigger(IrqIndex.MSIX, 2)
    assert not any(flags)
    after.clear()


def test_interrupts_beyond_that_memory_are_forgotten(eventfd: Callable[[], int]) -> None:
    flags = memoryview(bytearray(2))
    before, after = table(flags), table(flags)
    mask(before, 3)
    after.take_over(Estate())
    assert not after.pending(IrqIndex.MSIX, 3)


class Lives:
    """The sessions of one client, one after the other, which end without a word. Register 4 is answered later."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._journal = stack.enter_context(closing(Journal(LARGEST)))
        self._server, self.client = socket.socketpair()
        self.client.settimeout(DEADLINE)
        for sock in (self._server, self.client):
            stack.callback(sock.close)
        self.late: list[Late] = []

    def begin(self, *, again: bool = True) -> Session:
        device = self._stack.enter_context(closing(FakeDevice()))

        def read(_region: int, _offset: int, _count: int) -> bytes:
            self.late.append(Late())
            raise self.late[-1]

        device.on_read = read
        session = Session(self._server.dup(), device, journal=Journal(LARGEST, os.dup(self._journal.fd)))
        self._stack.callback(session.close)
        session.take_over(Estate({"version": Kept("version", {})}))
        session.finish(Estate(), again=again)
        return session

    def ask(self, number: int) -> None:
        self.client.send(HEADER.pack(number, Command.REGION_READ, 32, 0, 0) + REGION_ACCESS.pack(4, PLAIN, 4))

    def answered(self) -> tuple[int, int, bytes]:
        """The id of a reply, its error, and its data."""
        reply = self.client.recv(32 + 4)
        number, _, _, _, error = HEADER.unpack_from(reply)
        return number, error, reply[32:]

    def silent(self) -> bool:
        return not select.select([self.client], [], [], 0)[0]


@pytest.fixture
def lives() -> Iterator[Lives]:
    with ExitStack() as stack:
        yield Lives(stack)


def test_a_read_that_waits_for_its_answer_is_done_again(lives: Lives) -> None:
    session = lives.begin()
    for number in (7, 8):
        lives.ask(number)
        session.service()
    lives.late[1].answer(b"soon")
    assert lives.answered() == (8, 0, b"soon")
    lives.begin()
    assert (len(lives.late), lives.silent()) == (3, True)
    lives.begin()
    lives.late[3].answer(b"late")
    assert lives.answered() == (7, 0, b"late")
    lives.begin()
    assert (len(lives.late), lives.silent()) == (4, True)


class Dead(BaseException):
    """Stands for the end of the process: nothing that comes after it happens."""


def test_a_read_waits_until_right_before_the_kernel_gets_its_late_reply(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Dead

    session = lives.begin()
    lives.ask(7)
    session.service()
    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send_whole", die)
        with pytest.raises(Dead):
            lives.late[0].answer(b"lost")
    channel = lives.begin()._channel
    monkeypatch.setattr(channel, "_sock", SimpleNamespace(send=die, close=channel._sock.close))
    with pytest.raises(Dead):
        lives.late[1].answer(b"gone")
    lives.begin()
    assert (len(lives.late), lives.silent()) == (2, True)  # a reply might be sent twice


def test_a_late_reply_leaves_what_is_in_work_meanwhile_in_work(lives: Lives) -> None:
    session = lives.begin()
    lives.ask(7)
    session.service()
    marks = session._channel.marks
    marks[BUSY] = session._channel.start = 64
    lives.late[0].answer(b"late")
    assert marks[BUSY] > marks[HEAD]
    assert lives.answered() == (7, 0, b"late")


def test_a_read_that_waits_fails_if_it_must_not_be_done_again(lives: Lives) -> None:
    session = lives.begin()
    lives.ask(7)
    session.service()
    lives.begin(again=False)
    assert lives.answered() == (7, errno.EIO, b"")
    lives.begin(again=False)
    assert lives.silent()


def test_more_reads_than_there_is_room_for_are_answered_by_their_own_process(lives: Lives) -> None:
    session = lives.begin()
    for number in range(LATE_READS + 1):
        lives.ask(number)
        session.service()
    for late in lives.late:
        late.answer(b"data")
    assert [lives.answered()[0] for _ in lives.late] == list(range(LATE_READS + 1))
    for number in range(LATE_READS + 1):
        lives.ask(number)
        session.service()
    lives.begin()
    assert len(lives.late) == 2 * (LATE_READS + 1) + LATE_READS
