"""A tap is shown every message, both ways, and no client can tell that there is one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import pytest

from protocol.backend import NO_REPLY, PLAIN, REPLY, FakeDevice, Link, message, served
from protocol.guest import GUEST, GuestMemory
from protocol.test_dma_messages import wait
from protocol.test_known_accesses import ALONE, waited
from protocol.test_transfer import READ, WRITE, access, write
from vfio_user import Client, Command, DmaMap, Late
from vfio_user.tap import Piece


class Kept:
    """A tap that keeps what it is shown."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, int]] = []

    def received(self, pieces: Sequence[Piece], fds: int) -> None:
        self.messages.append(("received", b"".join(pieces), fds))

    def sent(self, pieces: Sequence[Piece], fds: int) -> None:
        self.messages.append(("sent", b"".join(pieces), fds))


@pytest.fixture
def kept(link: Link) -> Iterator[Kept]:
    kept = Kept()
    link.session.tap(kept)
    yield kept
    link.session.tap(None)


def reply(command: int, payload: bytes) -> bytes:
    return message(command, payload, flags=REPLY)


def test_a_command_and_its_reply_are_shown_in_order(link: Link, kept: Kept) -> None:
    info = link.ok(Command.DEVICE_GET_INFO, struct.pack("<4I", 16, 0, 0, 0))
    asked = message(Command.DEVICE_GET_INFO, struct.pack("<4I", 16, 0, 0, 0))
    assert kept.messages == [("received", asked, 0), ("sent", reply(Command.DEVICE_GET_INFO, info), 0)]


def test_known_accesses_are_shown_as_the_first_one_is(link: Link, kept: Kept) -> None:
    for _ in range(3):
        link.ok(WRITE, write(8, b"ring"))
        link.ok(READ, access(8, 4))
    assert kept.messages == 3 * kept.messages[:4]
    assert kept.messages[2:4] == [
        ("received", message(READ, access(8, 4)), 0),
        ("sent", reply(READ, access(8, 4) + b"ring"), 0),
    ]
    assert link.device.accesses == {}
    link.session.settle()
    assert link.device.accesses == {(PLAIN, 8, 4, True): 3, (PLAIN, 8, 4, False): 3}


def test_a_read_that_only_looks_at_memory_is_shown_too(link: Link, kept: Kept) -> None:
    link.device.plain = True
    for _ in range(2):
        link.send(READ, access(8, 4))
        assert waited(link, ALONE, ALONE) == ALONE
        link.session.service()
        link.receive()
    assert [way for way, *_ in kept.messages] == ["received", "sent"] * 2


def test_a_posted_write_has_no_reply(link: Link, kept: Kept) -> None:
    link.send(WRITE, write(8, b"ring"), flags=NO_REPLY)
    link.session.service()
    assert kept.messages == [("received", message(WRITE, write(8, b"ring"), flags=NO_REPLY), 0)]


def test_an_error_reply_is_shown(link: Link, kept: Kept) -> None:
    error = link.refused(READ, access(1 << 40, 4))
    assert [struct.unpack_from("<HHIII", shown)[3:] for _, shown, _ in kept.messages] == [(0, 0), (0x21, error)]


def test_descriptors_are_counted_both_ways(link: Link, kept: Kept, memfd: Callable[[int], int]) -> None:
    link.ok(Command.DMA_MAP, DmaMap(3, 0, 0, 4096).pack(), fds=[memfd(4096)])
    link.ask(Command.DEVICE_GET_REGION_INFO, struct.pack("<4IQQ", 4096, 0, 1, 0, 0, 0))
    assert [(way, fds) for way, _, fds in kept.messages] == [
        ("received", 1), ("sent", 0), ("received", 0), ("sent", 1),
    ]  # fmt: skip


def test_a_message_that_comes_in_pieces_is_shown_whole_once(link: Link, kept: Kept) -> None:
    whole = message(WRITE, write(8, b"ring"))
    for at in range(len(whole)):
        link.raw(whole[at : at + 1])
        link.session.service()
    link.receive()
    assert [shown for way, shown, _ in kept.messages if way == "received"] == [whole]


def test_a_late_reply_is_shown(link: Link, kept: Kept) -> None:
    late = Late()

    def read(*_: int) -> bytes:
        raise late

    link.device.on_read = read
    link.send(READ, access(8, 4))
    link.session.service()
    late.answer(b"late")
    link.receive()
    assert kept.messages[-1] == ("sent", reply(READ, access(8, 4) + b"late"), 0)


def test_a_tap_comes_and_goes_while_the_client_is_connected(link: Link) -> None:
    first, second = Kept(), Kept()
    for tap in (None, first, second, None):
        link.session.tap(tap)
        link.ok(READ, access(8, 4))
    assert (len(first.messages), len(second.messages)) == (2, 2)
    assert "_tap" not in vars(link.session._channel)


def test_a_message_that_was_half_there_when_the_tap_came_is_shown(link: Link) -> None:
    whole = message(WRITE, write(8, b"ring"))
    link.raw(whole[:20])
    link.session.service()
    kept = Kept()
    link.session.tap(kept)
    link.raw(whole[20:])
    link.session.service()
    assert [way for way, *_ in kept.messages] == ["received", "sent"]
    assert kept.messages[0][1] == whole


def test_dma_messages_and_their_replies_are_shown(device: FakeDevice) -> None:
    kept, memory = Kept(), GuestMemory(4096)
    with served(device) as (server, sock), Client(sock, memory=memory) as client:
        server.call(lambda: server.session.tap(kept)).result(5)
        future = server.call(lambda: server.session.dma_read(GUEST, 8))
        assert len(wait(client, future) or b"") == 8
    commands = [(way, struct.unpack_from("<HHIII", shown)[1]) for way, shown, _ in kept.messages]
    assert ("sent", Command.DMA_READ) in commands
    assert ("received", Command.DMA_READ) in commands
