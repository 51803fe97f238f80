"""The messages between the manager, the fork server and the workers: JSON in datagrams, fds beside it.

A message that is too long for a datagram is sent in a memfd, beside a datagram of one byte.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from bellwired.box.wanted import Wanted

LARGEST_DATAGRAM = 1 << 16  # bytes; a fraction of what a socket queues
LARGEST = 1 << 24  # bytes of a message in a memfd: a device with a hundred thousand registers fits
MOST_FDS = 252
REFUSED, MOVED = 78, 75
"""The status of a worker that no restart will help (EX_CONFIG), and of one that another goes on for (EX_TEMPFAIL)."""
_IN_MEMFD = b"@"
_ROOM = socket.CMSG_LEN((MOST_FDS + 1) * array.array("i").itemsize)


class WireError(Exception):
    """The received data is not a message of this protocol."""


class Spawn(Struct, tag=True):
    """Manager to fork server: run a device, on the listener and the control socket that come with it.

    With ``trial``, the device is imported and its options are checked, and it is not run: no listener comes then.
    Relative paths in its options start at ``folder``. Each of the ``filters`` is as a ``[[filter]]`` of its file.
    """

    name: str
    device: str
    options: dict[str, bool | int | float | str]
    log_level: str
    io_fd_entry: int
    dialect: str
    busy_poll: int
    plugins: list[str]
    folder: str
    max_maps: int
    hello_timeout: float
    trial: bool = False
    number: int = 0
    filters: list[dict[str, bool | int | float | str]] = []
    box: Wanted = Wanted()
    succeeds: bool = False
    """It takes over the client of a worker that has died. An :class:`Inherit` comes on the control socket."""
    as_left: bool = False
    """Several before it have not got further than their start: it has the code that is in what it inherits."""


class Spawned(Struct, tag=True):
    """Fork server to manager: a worker runs as ``pid``, and its pidfd comes too; 0 if the fork has failed."""

    number: int
    pid: int
    error: str = ""


class Exited(Struct, tag=True):
    """Fork server to manager: a worker has ended; ``status`` as subprocess has it, negative for a signal."""

    pid: int
    status: int


class Ask(Struct, tag=True):
    """Manager to worker: ``what`` is a key of :class:`bellwired.workers.worker.Serving`'s answers.

    The files of a capture come as descriptors; the event ring of a trace goes back as one. The fork server takes ping,
    and stopped: whether a signal has stopped the worker ``pid``.
    """

    number: int
    what: str
    arguments: dict[str, str] = {}


class Answer(Struct, tag=True):
    """Worker to manager, and fork server to manager: the answer to an :class:`Ask`."""

    number: int
    value: Any = None
    error: str = ""


class Report(Struct, tag=True):
    """Worker to manager, unasked: see :mod:`bellwired.manager.events`."""

    kind: str
    fields: dict[str, Any]


Named = tuple[str, str, Annotated[int, Meta(ge=0)]]
"""An entry of a ledger: its key, its note, and the number of its fds."""


class Keep(Struct, tag=True):
    """Worker to manager: keep these entries of its ledger, whose fds come too, in order. The notes are not read."""

    entries: list[Named]


class Drop(Struct, tag=True):
    """Worker to manager: forget these entries of its ledger; without keys, all."""

    keys: list[str]


class Inherit(Struct, tag=True):
    """Manager to worker: entries that a worker before it has kept, as in :class:`Keep`. The ``last`` message ends."""

    entries: list[Named]
    last: bool
    hung: bool = False
    """The last worker hung: what it was at is not to be done again."""


Kind = TypeVar("Kind")
Message = Spawn | Spawned | Exited | Ask | Answer | Report | Keep | Drop | Inherit
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def pair() -> tuple[socket.socket, socket.socket]:
    """A pair of connected sockets for messages; the caller owns both."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    sock: socket.socket, message: Struct, fds: list[int] | None = None, largest_datagram: int = LARGEST_DATAGRAM
) -> None:
    """Send one message, in a memfd if it has more bytes than ``largest_datagram``.

    Raises an OSError if the far end is gone, or its queue is full.
    """
    data = _encoder.encode(message)
    if len(data) <= largest_datagram:
        _send(sock, data, fds or [])
        return
    memfd = os.memfd_create("bellwire-message", os.MFD_CLOEXEC)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(data)
        _send(sock, _IN_MEMFD, [memfd, *(fds or [])])
    finally:
        os.close(memfd)


def receive(sock: socket.socket, *, peek: bool = False) -> tuple[Message, list[int]] | None:
    """The next message and its fds, which the caller owns; None at the end. BlockingIOError if there is no message.

    Some fds are missing if the receiver has no free descriptors. With ``peek``, the message stays in the queue, with
    its own descriptors, until :func:`discard`.
    """
    return received(sock, _decoder, peek=peek)


def received(
    sock: socket.socket, decoder: msgspec.json.Decoder[Kind], *, peek: bool = False
) -> tuple[Kind, list[int]] | None:
    """The same for the messages of ``decoder``."""
    how = socket.MSG_CMSG_CLOEXEC | (socket.MSG_PEEK if peek else 0)
    try:
        data, beside, flags, _ = sock.recvmsg(LARGEST_DATAGRAM, _ROOM, how)
    except ConnectionResetError:  # told once, if the far end has closed with something unread: its messages come next
        return received(sock, decoder, peek=peek)
    if not data:
        return None
    fds = array.array("i")
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    found = list(fds)
    try:
        if data == _IN_MEMFD and found:
            data = _content(found.pop(0))
        if flags & socket.MSG_TRUNC:
            raise WireError("a message has been cut off")
        return decoder.decode(data), found
    except (msgspec.DecodeError, WireError) as error:
        close(found)
        raise WireError(str(error)) from None


def discard(sock: socket.socket) -> None:
    """Take a message off the queue. The kernel closes its descriptors."""
    sock.recv(1)


def close(fds: list[int]) -> None:
    """Close received descriptors that are not needed."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def _content(memfd: int) -> bytes:
    try:
        size = os.fstat(memfd).st_size
        if not 0 < size <= LARGEST:
            raise WireError(f"a message of {size} bytes, expected at most {LARGEST}")
        return os.pread(memfd, size, 0)
    except OSError as error:
        raise WireError(f"a message that cannot be read: {error.strerror}") from None
    finally:
        os.close(memfd)
