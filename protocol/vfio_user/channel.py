"""Framing: messages with file descriptors over a UNIX stream socket.

A message may arrive in any number of pieces, and one piece may hold several messages. Fds belong to the message that
holds the last byte received with them: the kernel ends a receive where bytes with other fds begin.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from vfio_user.constants import HEADER_SIZE, Command, MessageFlags
from vfio_user.errors import Disconnected, FramingError, TimedOut, VfioUserError

HEADER = struct.Struct("<HHIII")
PREFIX = struct.Struct("<2s30s")  # a message's id; then the rest, up to the data of a REGION_READ or REGION_WRITE
unpack_prefix, PREFIX_SIZE = PREFIX.unpack_from, PREFIX.size
SPARE = 4096  # bytes beyond the largest transfer: a message's own structs
KERNEL_MAX_FDS = 253
MOST_FDS_HELD = 2 * KERNEL_MAX_FDS  # of one incomplete message; its last receive may bring fds of the next message, too
_FD = struct.Struct("i")
_CHUNK = 1 << 16
ANCILLARY = socket.CMSG_SPACE(KERNEL_MAX_FDS * _FD.size)
# Plain ints: the operators of IntFlag cost more than a system call.
RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
CUT = int(socket.MSG_CTRUNC)
SEND = int(socket.MSG_NOSIGNAL)
_SHORT = 4096  # bytes that are joined rather than gathered
_MOST_PIECES = 1024  # that the kernel gathers: its IOV_MAX


class Known(Protocol):
    """What is known about a message before it arrives."""

    @property
    def size(self) -> int:
        """Bytes of the whole message."""


T = TypeVar("T", bound=Known)


class Loan(NamedTuple):
    """A channel's buffer and its socket's methods, lent by :meth:`Channel.lend`."""

    buffer: bytearray
    room: tuple[memoryview]
    receive: Callable[[tuple[memoryview], int, int], tuple[int, list[tuple[int, int, bytes]], int, object]]
    send: Callable[[bytes, int], int]


Ready = list[tuple[int, int]]
"""What ``epoll.poll()`` returns: pairs of a descriptor and its events."""


class Message(NamedTuple):
    """A received message. ``payload`` is valid until the next receive. The receiver owns ``fds`` and closes them."""

    id: int
    command: int
    flags: int
    error: int
    payload: memoryview
    fds: list[int]

    @property
    def is_reply(self) -> bool:
        """Whether this message is a reply, not a command."""
        return self.flags & 0xF == MessageFlags.REPLY

    @property
    def name(self) -> str:
        """The command's name, or its number."""
        return command_name(self.command)


def command_name(number: int) -> str:
    """The name of a command for messages to people: ``REGION_READ``; ``command 99`` if the number is unknown."""
    return Command(number).name if number in Command._value2member_map_ else f"command {number}"


def _name(message: bytes) -> str:
    return command_name(HEADER.unpack_from(message)[1])


def close_fds(fds: list[int]) -> None:
    """Close the descriptors and empty the list."""
    while fds:
        os.close(fds.pop())


class Channel:
    """One end of a vfio-user socket, which it owns.

    ``max_transfer`` is the most bytes of data in a message. ``timeout`` is how many seconds a send waits for a peer
    that does not read.
    """

    def __init__(self, sock: socket.socket, max_transfer: int, timeout: float = 5.0) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._timeout = timeout
        self.max_message = HEADER_SIZE + max_transfer + SPARE
        self._buffer = bytearray(2 * _CHUNK)
        self._view = memoryview(self._buffer)
        self._start = 0  # of the first byte not yet given out
        self._end = 0  # of the last byte received
        self._fds: list[tuple[int, list[int]]] = []  # (stream position of the last byte received with them, fds)
        self.position = 0
        """The stream position of the first byte that was not given out yet."""
        self._broken = ""  # why nothing more can be sent: a message was cut short
        self.drained = False
        """Whether the last receive left room in the buffer: the socket is most likely empty (only a poll is sure)."""

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._sock.fileno()

    @property
    def empty(self) -> bool:
        """Whether all received bytes have been given out."""
        return self._start == self._end

    @property
    def ready(self) -> bool:
        """Whether the buffer holds a whole message that was not given out. A poll of the socket does not show it."""
        if self._start == self._end:
            return False
        available = self._end - self._start
        return available >= HEADER_SIZE and available >= int(HEADER.unpack_from(self._buffer, self._start)[2])

    def keep(self) -> None:
        """Keep the payload that was given out last valid for as long as somebody holds it: a new buffer takes over."""
        kept = self._end - self._start
        fresh = bytearray(max(2 * _CHUNK, kept + _CHUNK))
        fresh[:kept] = self._view[self._start : self._end]
        self._buffer, self._view = fresh, memoryview(fresh)
        self._start, self._end = 0, kept

    def receive(self) -> Message | None:
        """The next message if it has arrived whole, else None. Never waits.

        Raises Disconnected at the end of the stream, FramingError for a size that no message can have.
        """
        while True:
            if self._end > self._start:
                message = self._parse()
                if message is not None:
                    return message
            if not self._fill():
                return None

    def recall(self, known: Mapping[bytes, T]) -> tuple[bytes, T, memoryview] | None:
        """The next message, if the rest of its :data:`PREFIX` is a key of ``known``: its id, the value, its data.

        Returns None, and leaves the message for :meth:`receive`, if it is not known, is not whole, or has descriptors.
        """
        start = self._start
        if start == self._end:
            if not self._fill():
                return None
            start = 0
        if self._end - start < PREFIX_SIZE or self._fds:
            return None
        message_id, rest = unpack_prefix(self._buffer, start)
        found = known.get(rest)
        if found is None:
            return None
        end = start + found.size
        if end > self._end:
            return None
        self._start = end
        self.position += found.size
        return message_id, found, self._view[start + PREFIX_SIZE : end]

    def lend(self) -> Loan | None:
        """What a caller needs to receive and send without this class; None if bytes are buffered here.

        The borrower adds the size of each message that it handles to :attr:`position`, and reports any other receive
        to :meth:`received`.
        """
        if self._start != self._end or self._broken:
            return None
        self._start = self._end = 0
        return Loan(self._buffer, (self._view,), self._sock.recvmsg_into, self._sock.send)

    def receive_by(self, deadline: float) -> Message:
        """Wait for the next message. Raises TimedOut if it has not arrived by ``deadline`` (of time.monotonic)."""
        while True:
            message = self.receive()
            if message is not None:
                return message
            self._wait(select.POLLIN, deadline, "nothing came from the peer")

    def send(
        self,
        message_id: int,
        command: int,
        flags: int,
        error: int = 0,
        parts: Sequence[bytes | bytearray | memoryview] = (),
        fds: Sequence[int] = (),
        *,
        listening: bool = True,
    ) -> None:
        """Send a whole message; the fds stay the caller's.

        If ``listening``, messages from the peer are received into the buffer while the peer does not read: it may be
        waiting to send to us.

        Raises TimedOut if the peer does not read, Disconnected if it is gone, VfioUserError (E2BIG) for too many fds.
        A TimedOut may have cut the message short; every later send then raises Disconnected.
        """
        size = HEADER_SIZE
        for part in parts:
            size += len(part)
        if size <= _SHORT and not fds:
            self.send_whole(HEADER.pack(message_id, command, size, flags, error) + b"".join(parts), listening)
            return
        if self._broken:
            raise Disconnected(self._broken)
        name = command_name(command)
        if len(fds) > KERNEL_MAX_FDS:
            raise VfioUserError(f"{name}: {len(fds)} fds, at most {KERNEL_MAX_FDS} travel with a message", errno.E2BIG)
        pieces = [HEADER.pack(message_id, command, size, flags, error), *parts]
        self._send_pieces(pieces, size, fds, name, listening)

    def send_whole(self, message: bytes, listening: bool = True) -> None:
        """Send a packed message; otherwise as :meth:`send`."""
        if self._broken:
            raise Disconnected(self._broken)
        try:
            sent = self._sock.send(message, SEND)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Disconnected(f"sending {_name(message)}: {error.strerror}") from None
        if sent < len(message):
            self._send_rest(message, sent, [], _name(message), listening)

    def send_rest_of(self, message: bytes, sent: int) -> None:
        """Send the rest of a packed message of which ``sent`` bytes are sent; otherwise as :meth:`send`."""
        self._send_rest(message, sent, [], _name(message), listening=True)

    def break_off(self) -> None:
        """End the connection, so that the next receive raises Disconnected: a message could not be sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and all descriptors that were not given out, and free the buffer."""
        for _, fds in self._fds:
            close_fds(fds)
        self._fds.clear()
        self._sock.close()
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def _send_pieces(
        self, pieces: list[bytes | bytearray | memoryview], size: int, fds: Sequence[int], name: str, listening: bool
    ) -> None:
        """Send a message of ``size`` bytes that is in pieces."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if len(pieces) > _MOST_PIECES:
            pieces = [b"".join(pieces)]
        try:
            sent = self._sock.sendmsg(pieces, ancillary, SEND)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Disconnected(f"sending {name}: {error.strerror}") from None
        if sent < size:
            ancillary = ancillary if sent == 0 else []
            self._send_rest(b"".join(pieces), sent, ancillary, name, listening)

    def _send_rest(
        self, data: bytes, sent: int, ancillary: list[tuple[int, int, array.array[int]]], name: str, listening: bool
    ) -> None:
        """Send the bytes from ``sent`` on, as fast as the peer reads."""
        deadline = time.monotonic() + self._timeout
        view = memoryview(data)
        while sent < len(data):
            listening = listening and self._end - self._start < 2 * self.max_message
            events = select.POLLOUT | (select.POLLIN if listening else 0)
            try:
                ready = self._wait(events, deadline, f"the peer does not read {name}")
            except TimedOut:
                if sent:
                    self._broken = f"an earlier {name} was cut short, because the peer did not read it"
                raise
            if listening and ready & select.POLLIN:
                try:
                    self._fill()
                except Disconnected:
                    listening = False  # the peer sends nothing more, and may still be reading
            try:
                sent += self._sock.sendmsg([view[sent:]], ancillary, SEND)
                ancillary = []
            except BlockingIOError:
                continue
            except OSError as error:
                raise Disconnected(f"sending {name}: {error.strerror}") from None

    def _wait(self, events: int, deadline: float, why: str) -> int:
        poll = select.poll()
        poll.register(self._sock, events)
        left = deadline - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            raise TimedOut(why)
        return ready[0][1]

    def _parse(self) -> Message | None:
        available = self._end - self._start
        if available < HEADER_SIZE:
            return None
        message_id, command, size, flags, error = HEADER.unpack_from(self._buffer, self._start)
        if not HEADER_SIZE <= size <= self.max_message:
            raise FramingError(
                f"{command_name(command)}: message size {size}, expected {HEADER_SIZE} to {self.max_message}",
                None if flags & (MessageFlags.REPLY | MessageFlags.NO_REPLY) else (message_id, command),
            )
        if available < size:
            self._make_room(size)
            return None
        payload = self._view[self._start + HEADER_SIZE : self._start + size]
        self._start += size
        self.position += size
        return Message(message_id, command, flags, error, payload, self._take_fds() if self._fds else [])

    def _take_fds(self) -> list[int]:
        """Take the fds of the message that ends at the current position."""
        taken: list[int] = []
        while self._fds and self._fds[0][0] <= self.position:
            taken += self._fds.pop(0)[1]
        return taken

    def _make_room(self, size: int) -> None:
        """Make the buffer hold a message of ``size`` bytes that begins at the first buffered byte."""
        if len(self._buffer) - self._start >= size:
            return
        kept = self._end - self._start
        if len(self._buffer) < size:
            larger = bytearray(size + _CHUNK)
            larger[:kept] = self._view[self._start : self._end]
            self._buffer, self._view = larger, memoryview(larger)
        else:
            self._buffer[:kept] = bytes(self._view[self._start : self._end])
        self._start, self._end = 0, kept

    def _fill(self) -> bool:
        """Receive once, without waiting. Returns False if the socket was empty."""
        room = self._view
        if self._start == self._end:
            self._start = self._end = 0
        else:
            if len(self._buffer) - self._end < HEADER_SIZE:
                self._make_room(len(self._buffer) - self._start + 1 if self._start == 0 else len(self._buffer))
            room = self._view[self._end :]
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into((room,), ANCILLARY, RECEIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Disconnected(f"receiving: {error.strerror}") from None
        self.received(count, ancillary, flags)
        return True

    def received(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        """Take note of ``count`` bytes that a receive has put behind the buffered ones, and of its fds.

        Raises Disconnected for 0 bytes, and FramingError if descriptors were lost or are too many.
        """
        self._end += count
        self.drained = self._end < len(self._buffer)
        if ancillary:
            self._keep_fds(ancillary)
        if flags & CUT:
            raise FramingError(f"more than {KERNEL_MAX_FDS} file descriptors came at once, or none could be taken")
        if count == 0:
            raise Disconnected

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                usable = len(data) - len(data) % _FD.size
                fds = [fd for (fd,) in _FD.iter_unpack(data[:usable])]
                self._fds.append((self.position + self._end - self._start, fds))
        if sum(len(fds) for _, fds in self._fds) > MOST_FDS_HELD:
            raise FramingError(f"more than {MOST_FDS_HELD} file descriptors came with pieces of one message")
