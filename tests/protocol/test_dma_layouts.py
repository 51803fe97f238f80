"""The layout of QEMU 10.1 to 10.2.2: a count of 32 bits, and no payload in the reply to a write."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from protocol.backend import DEADLINE, Answer, Server, Wire
from vfio_user import Command, VfioUserError


class OldQemu:
    """Answers as it does; ``memory`` is what it has made of DMA_WRITE."""

    HEAD = struct.Struct("<QI")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.memory = bytearray(b"x" * 64)
        self.asked: list[Answer] = []

    def answer(self) -> None:
        asked = self.wire.receive_any()
        self.asked.append(asked)
        address, count = self.HEAD.unpack_from(asked.payload)
        data = asked.payload[self.HEAD.size :][:count]
        if asked.command == Command.DMA_WRITE:
            self.memory[address : address + len(data)] = data
            self.wire.reply(asked)
        else:
            self.wire.reply(asked, self.HEAD.pack(address, count) + self.memory[address : address + count])


@pytest.mark.parametrize("way", ["read", "write"])
def test_dma_by_message_is_refused_before_it_corrupts_memory(conversation: tuple[Server, Wire], way: str) -> None:
    server, wire = conversation
    session, old = server.session, OldQemu(wire)
    attempts: list[Callable[[], object]] = [lambda: session.dma_read(8, 4), lambda: session.dma_write(8, b"1234")]
    for attempt in attempts if way == "read" else reversed(attempts):
        future = server.call(attempt)
        if not old.asked:
            old.answer()
        with pytest.raises(VfioUserError, match=r"QEMU's old layout .* share the memory") as refusal:
            future.result(DEADLINE)
        assert refusal.value.errno == errno.ENOTSUP
    assert old.memory == b"x" * 64
    assert [(asked.command, len(asked.payload)) for asked in old.asked] == [(Command.DMA_WRITE, 16)]
    assert wire.silent


def test_a_client_is_looked_at_once(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: [server.session.dma_read(0, 1) for _ in range(3)])
    commands = []
    for _ in range(4):
        asked = wire.receive_any()
        commands.append(asked.command)
        wire.reply(asked, asked.payload + b"!" * (asked.command == Command.DMA_READ))
    assert future.result(DEADLINE) == [b"!"] * 3
    assert commands == [Command.DMA_WRITE] + [Command.DMA_READ] * 3


def test_a_client_that_refuses_a_write_of_nothing_is_asked_all_the_same(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    wire.reply(wire.receive_any(), error=errno.EINVAL)
    asked = wire.receive_any()
    assert asked.command == Command.DMA_READ
    wire.reply(asked, asked.payload + b"well")
    assert future.result(DEADLINE) == b"well"
