"""What the manager, the fork server and the workers say to each other: JSON in datagrams, fds beside it."""

from __future__ import annotations

import array
import socket
from typing import Any

import msgspec
from msgspec import Struct

LARGEST = 1 << 18  # bytes of a message: a device with thousands of registers fits
MOST_FDS = 4


class Spawn(Struct, tag=True):
    """Manager to fork server: run a device, on the listener and the control socket that come with it."""

    name: str
    device: str
    options: dict[str, bool | int | float | str]
    log_level: str
    io_fd_entry: int
    plugins: list[str]


class Spawned(Struct, tag=True):
    """Fork server to manager: it runs as ``pid``, whose pidfd comes with this; 0 when it could not be forked."""

    name: str
    pid: int
    error: str = ""


class Exited(Struct, tag=True):
    """Fork server to manager: a worker has ended; ``status`` as subprocess has it, negative for a signal."""

    pid: int
    status: int


class Ask(Struct, tag=True):
    """Manager to worker: ``what`` is ping, reset, registers, statistics or stop. The fork server takes ping too."""

    number: int
    what: str


class Answer(Struct, tag=True):
    """To an :class:`Ask`."""

    number: int
    value: Any = None
    error: str = ""


class Event(Struct, tag=True):
    """Worker to manager, unasked: see :mod:`bellwired.manager.events`."""

    kind: str
    fields: dict[str, Any]


Message = Spawn | Spawned | Exited | Ask | Answer | Event
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends for messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    """One message. An OSError when the far end is gone, or its queue is full."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([_encoder.encode(message)], ancillary)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its fds, which are the receiver's; None at the end. BlockingIOError when none is there."""
    data, fds, _, _ = socket.recv_fds(sock, LARGEST, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    return _decoder.decode(data), fds
