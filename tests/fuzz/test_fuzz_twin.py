"""Any bytes on a twin socket, to a server and to a client. The main connection goes on, or ends as one does."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from contextlib import closing

from hypothesis import strategies as st

from fuzz.fuzzing import fuzz, mutated
from protocol.backend import REPLY, FakeDevice, Link, Wire, message
from protocol.guest import GuestMemory
from vfio_user import Capabilities, Client, Command, Version, VfioUserError

PROPOSAL = b'{"capabilities":{"max_msg_fds":16,"twin_socket":{"supported":true}}}\0'
ANSWER = Version(0, 2, Capabilities.of(max_msg_fds=16, twin_socket=True, fd_index=0)).pack()
REPLIES = message(Command.DMA_READ, struct.pack("<QQ", 0, 8) + b"8 bytes.", id=1, flags=REPLY)
COMMANDS = b"".join(
    message(command, struct.pack("<QQ", 0x100000, 8) + data, id=3)
    for command, data in ((Command.DMA_READ, b""), (Command.DMA_WRITE, b"8 bytes."), (Command.DEVICE_RESET, b""))
)


def to_server(data: bytes) -> None:
    with closing(FakeDevice()) as device:
        with closing(Link(device, timeout=0.05)) as link:
            twin = Wire(socket.socket(fileno=os.dup(link.greet(PROPOSAL).fds[0])))
            with closing(twin):
                twin.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    twin.sock.send(data)
                twin.sock.shutdown(socket.SHUT_WR)
                for _ in range(2):
                    with contextlib.suppress(VfioUserError):
                        assert len(link.session.dma_read(0, 8)) == 8
                assert link.ok(Command.DEVICE_RESET) == b""
        assert device.failures == []


def to_client(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    near, far = socket.socketpair()
    with closing(Wire(theirs)) as wire, near, far:
        wire.raw(message(Command.VERSION, ANSWER, flags=REPLY), [near.fileno()])
        with Client(ours, timeout=0.5, memory=GuestMemory(64), twin=True) as client:
            wire.receive()
            far.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                far.send(data)
            far.shutdown(socket.SHUT_WR)
            wire.raw(message(Command.DEVICE_RESET, id=2, flags=REPLY))
            client.reset()


def attack(drawn: tuple[bool, bytes]) -> None:
    server, data = drawn
    (to_server if server else to_client)(data)


inputs = st.tuples(st.booleans(), mutated([REPLIES, COMMANDS, REPLIES + COMMANDS, b""]))
_, test_briefly, test_long = fuzz(attack, inputs)
