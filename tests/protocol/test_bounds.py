"""The last that is kept or mapped, and the first that is not: commands during a DMA message, files of large pages."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from vfio_user import (
    Disconnected,
    FramingError,
    IoRegionServer,
    Message,
    TimedOut,
    VfioUserError,
    dma,
    dma_requests,
    mapping,
)
from vfio_user.channel import Channel as Frames
from vfio_user.constants import Command, MessageFlags
from vfio_user.dma import DmaMap, DmaTable, DmaUnmap
from vfio_user.dma_requests import DmaRequests
from vfio_user.transfer import DmaAccess

MEBIBYTE = 1 << 20


class Channel:
    """Gives messages one by one; what was sent is noted."""

    def __init__(self, *messages: Message) -> None:
        self.messages = deque(messages)
        self.sent: list[tuple[int, int, list[bytes]]] = []

    def keep(self) -> None: ...

    def send(self, number: int, command: int, flags: int, error: int, parts: Any) -> None:
        assert (flags, error) == (0, 0)
        self.sent.append((number, command, [bytes(part) for part in parts]))

    def receive_by(self, _: float) -> Message:
        if not self.messages:
            raise TimedOut("nothing more")
        return self.messages.popleft()


def command(size: int = 0, fds: int = 0, flags: int = int(MessageFlags.NO_REPLY)) -> Message:
    return Message(9, Command.REGION_WRITE, flags, 0, memoryview(bytes(size)), [-1] * fds)


def reply(number: int, kind: Command, payload: bytes) -> Message:
    return Message(number, kind, int(MessageFlags.REPLY), 0, memoryview(payload), [])


def requests(*messages: Message) -> tuple[DmaRequests, Channel]:
    """With a client whose layout is known."""
    channel = Channel(*messages)
    made = DmaRequests(channel, 5.0, print)  # type: ignore[arg-type]
    made._layout = dma_requests.Layout.RATIFIED
    return made, channel


HEAD = DmaAccess(0x1000, 4).pack()


@pytest.mark.parametrize(
    ("first", "number", "last"),
    [
        (command(), 1024, command()),
        (command(size=MEBIBYTE), 16, command(size=1)),
        (command(fds=128), 4, command(fds=1)),
    ],
    ids=["commands", "bytes", "descriptors"],
)
def test_so_much_is_kept_and_no_more(first: Message, number: int, last: Message) -> None:
    made, _ = requests(*[first] * number, reply(1, Command.DMA_READ, HEAD + b"data"))
    assert made.read(0x1000, 4, MEBIBYTE) == b"data"
    assert len(made.kept) == number
    made, _ = requests(*[first] * number, last)
    with pytest.raises(TimedOut, match=f"{number + 1} commands came instead of the reply"):
        made.read(0x1000, 4, MEBIBYTE)


def test_what_is_taken_out_makes_room_again() -> None:
    made, channel = requests(*[command(size=MEBIBYTE, fds=32)] * 16, reply(1, Command.DMA_READ, HEAD + b"data"))
    made.read(0x1000, 4, MEBIBYTE)
    assert (made._bytes, made._fds, made._waited_for) == (16 * MEBIBYTE, 512, 0)
    made.pop()
    channel.messages += [command(size=MEBIBYTE, fds=32), reply(2, Command.DMA_READ, HEAD + b"more")]
    assert made.read(0x1000, 4, MEBIBYTE) == b"more"
    while made.kept:
        made.pop()
    assert (made._bytes, made._fds, made._waited_for) == (0, 0, 0)


def test_commands_that_want_a_reply_are_counted() -> None:
    made, _ = requests(command(flags=0), command(), command(flags=0), reply(1, Command.DMA_READ, HEAD + b"data"))
    made.read(0x1000, 4, MEBIBYTE)
    assert made._waited_for == 2
    made.close()
    assert (made._waited_for, len(made.kept)) == (0, 0)


@pytest.mark.parametrize(("count", "most", "pieces"), [(4, 4, [4]), (5, 4, [4, 1]), (8, 4, [4, 4]), (0, 4, [])])
def test_a_transfer_is_cut_into_messages(count: int, most: int, pieces: list[int]) -> None:
    heads = [DmaAccess(0x1000 + 4 * at, size).pack() for at, size in enumerate(pieces)]
    data = bytes(range(count))
    made, channel = requests(*(reply(at, Command.DMA_WRITE, head) for at, head in enumerate(heads, 1)))
    made.write(0x1000, memoryview(data), most)
    assert [(number, kind) for number, kind, _ in channel.sent] == [
        (at, Command.DMA_WRITE) for at in range(1, len(pieces) + 1)
    ]
    assert b"".join(parts[1] for *_, parts in channel.sent) == data
    assert [parts[0] for *_, parts in channel.sent] == heads
    assert made.outstanding is False


def test_numbers_of_messages_go_round_at_65536() -> None:
    made, channel = requests(reply(0, Command.DMA_READ, HEAD + b"data"), reply(1, Command.DMA_READ, HEAD + b"data"))
    made._next_id = 0xFFFF
    made.read(0x1000, 4, MEBIBYTE)
    made.read(0x1000, 4, MEBIBYTE)
    assert [number for number, *_ in channel.sent] == [0, 1]


# -- maps


@pytest.mark.parametrize(
    ("blocks", "page"), [(4096, 4096), (2 << 20, 2 << 20), (512, 4096), (4097, 4096), (8192, 8192), (6144, 4096)]
)
def test_a_files_pages_are_its_blocks_if_those_are_made_of_pages(
    monkeypatch: pytest.MonkeyPatch, blocks: int, page: int
) -> None:
    status = SimpleNamespace(st_mode=stat.S_IFREG, st_size=8 << 20, st_blksize=blocks)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    assert mapping._check_file(9, 4 << 20, 4 << 20) == page
    with pytest.raises(VfioUserError, match="too few for 4194304 at offset 0x400001"):
        mapping._check_file(9, (4 << 20) + 1, 4 << 20)
    status.st_mode = stat.S_IFCHR
    assert mapping._check_file(9, 1 << 40, 4096) == 4096, "a device has no size to compare with"


def test_a_map_that_goes_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma, "MOST_MAPPINGS", 2)
    table, fd = DmaTable(), os.memfd_create("guest")
    os.ftruncate(fd, 4096)

    def add(address: int) -> None:
        table.map(DmaMap(3, 0, address, 4096), os.dup(fd))

    for address in (0, 4096):
        add(address)
    for _ in range(3):
        with pytest.raises(VfioUserError, match="more than 2 ranges with a file"):
            add(8192)
        table.map(DmaMap(3, 0, 1 << 20, 4096), None)
        table.unmap(table.inside(DmaUnmap(4096, 2 << 20)))
        assert (len(table), table.total) == (1, 4096)
        add(4096)
    table.clear()
    assert (len(table), table.total, table._files) == (0, 0, 0)
    os.close(fd)


# -- buffers and responses


def test_a_channel_has_128_kib_until_a_message_needs_more() -> None:
    one, other = socket.socketpair()
    with other, contextlib.closing(Frames(one, 1 << 20)) as channel:
        loan = channel.lend()
        assert loan is not None
        assert (len(loan.buffer), channel.max_message) == (128 << 10, 16 + (1 << 20) + 4096)


@pytest.mark.parametrize(("count", "drained"), [((128 << 10) - 1, True), (128 << 10, False)])
def test_a_receive_that_fills_the_buffer_may_have_left_something(count: int, drained: bool) -> None:
    one, other = socket.socketpair()
    with other, contextlib.closing(Frames(one, 1 << 20)) as channel:
        channel.received(count, [], 0)
        assert channel.drained is drained


def test_the_end_of_the_stream_and_lost_descriptors_are_told() -> None:
    one, other = socket.socketpair()
    with other, contextlib.closing(Frames(one, 1 << 20)) as channel:
        with pytest.raises(Disconnected):
            channel.received(0, [], 0)
        with pytest.raises(FramingError, match="more than 253 file descriptors came at once"):
            channel.received(0, [], int(socket.MSG_CTRUNC))


@pytest.mark.parametrize("sent", [0, 31])
def test_a_response_that_is_cut_short_ends_the_wire(sent: int) -> None:
    class Short:
        type = socket.SOCK_STREAM

        def setblocking(self, _: bool) -> None: ...

        def send(self, data: bytes, _: int) -> int:
            assert len(data) == 32
            return sent

    with pytest.raises(Disconnected, match="a response was cut short"):
        IoRegionServer(Short()).respond(1)  # type: ignore[arg-type]


def test_a_packet_that_is_too_long_is_noticed_and_a_stream_is_not_read_ahead() -> None:
    for kind, room in ((socket.SOCK_SEQPACKET, 33), (socket.SOCK_STREAM, 32)):
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        with other, contextlib.closing(IoRegionServer(one)) as wire:
            assert len(wire._buffer) == room
            other.send(bytes(40))
            if kind == socket.SOCK_SEQPACKET:
                with pytest.raises(VfioUserError, match="33 bytes, expected 32"):
                    wire.receive()
