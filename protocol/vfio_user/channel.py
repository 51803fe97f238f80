"""Framing: messages with file descriptors over a UNIX stream socket.

A message may arrive in any number of pieces, and one piece may hold several messages. Fds belong to the message that
holds the last byte received with them: the kernel ends a receive where bytes with other fds begin.
"""

from __future__ import annotations

import array
import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from vfio_user.constants import HEADER_SIZE, MessageFlags
from vfio_user.errors import Disconnected, FramingError, TimedOut, VfioUserError
from vfio_user.journal import (
    GIVEN_UP,
    HEAD,
    SHORT,
    SPARE,
    TAIL,
    WAITS,
    Found,
    Journal,
    clear_marks,
    clear_short,
    moved,
    no_marks,
)
from vfio_user.loan import Loan
from vfio_user.message import Message, command_name, unsendable
from vfio_user.received_fds import FD, KERNEL_MAX_FDS, ReceivedFds

HEADER = struct.Struct("<HHIII")
PREFIX = struct.Struct("<2s30s")  # a message's id; then the rest, up to the data of a REGION_READ or REGION_WRITE
unpack_prefix, PREFIX_SIZE = PREFIX.unpack_from, PREFIX.size
_CHUNK = 1 << 16
ANCILLARY = socket.CMSG_SPACE(KERNEL_MAX_FDS * FD.size)
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


def _name(message: bytes) -> str:
    return command_name(HEADER.unpack_from(message)[1])


class Channel:
    """One end of a vfio-user socket, which it owns.

    ``max_transfer`` is the most bytes of data in a message. ``timeout`` is how many seconds a send waits for a peer
    that does not read. ``journal`` is where received bytes lie, if a successor shall find them.
    """

    def __init__(
        self, sock: socket.socket, max_transfer: int, timeout: float = 5.0, journal: Journal | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._timeout = timeout
        self.max_message = HEADER_SIZE + max_transfer + SPARE
        self._journaled = journal is not None
        self._buffer: bytearray | memoryview = bytearray(2 * _CHUNK) if journal is None else journal.buffer
        self._view = memoryview(self._buffer)
        self._loan: Loan | None = None  # the last one, for as long as the buffer is the same
        self.marks = no_marks() if journal is None else journal.marks
        """How far the received bytes are handled: see :mod:`vfio_user.journal`."""
        self._shown = self.marks
        self.start = 0
        """Where the bytes that were not given out yet begin in the buffer."""
        self._end = 0  # of the last byte received
        self._fds = ReceivedFds()
        self.position = 0
        """The stream position of the first byte that was not given out yet."""
        self._broken = ""  # why nothing more can be sent, if this side knows
        self.drained = False
        """Whether the last receive left room in the buffer: the socket is most likely empty (only a poll is sure)."""

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._sock.fileno()

    @property
    def empty(self) -> bool:
        """Whether all received bytes have been given out."""
        return self.start == self._end

    @property
    def ready(self) -> bool:
        """Whether the buffer holds a whole message that was not given out. A poll of the socket does not show it."""
        if self.start == self._end:
            return False
        available = self._end - self.start
        return available >= HEADER_SIZE and available >= int(HEADER.unpack_from(self._buffer, self.start)[2])

    def keep(self) -> None:
        """Keep the payload that was given out last valid for as long as somebody holds it: a new buffer takes over."""
        if self._journaled:  # device code holds the payload, so the journal cannot be used again
            self.marks[GIVEN_UP], self._journaled, self.marks = 1, False, no_marks()
        kept = self._end - self.start
        fresh = bytearray(max(2 * _CHUNK, kept + _CHUNK))
        fresh[:kept] = self._view[self.start : self._end]
        self._buffer, self._view = fresh, memoryview(fresh)
        self.start, self._end = 0, kept

    def done(self) -> None:
        """The message that was given out last, which wants no reply, is done with. A send says the same of others."""
        self.marks[HEAD] = self.start

    def resume(self, found: Found) -> None:
        """Begin with what a journal has of another process's channel. A message that was begun comes first again."""
        self.start, self._end = found.start, found.end

    def receive(self) -> Message | None:
        """The next message if it has arrived whole, else None. Never waits.

        Raises Disconnected at the end of the stream, FramingError for a size that no message can have.
        """
        while True:
            if self._end > self.start:
                message = self._parse()
                if message is not None:
                    return message
            if not self._fill():
                return None

    def recall(self, known: Mapping[bytes, T]) -> tuple[bytes, T, memoryview] | None:
        """The next message, if the rest of its :data:`PREFIX` is a key of ``known``: its id, the value, its data.

        Returns None, and leaves the message for :meth:`receive`, if it is not known, is not whole, or has descriptors.
        """
        start = self.start
        if start == self._end:
            if not self._fill():
                return None
            start = 0
        if self._end - start < PREFIX_SIZE or self._fds.held:
            return None
        message_id, rest = unpack_prefix(self._buffer, start)
        found = known.get(rest)
        if found is None:
            return None
        end = start + found.size
        if end > self._end:
            return None
        self.start = end
        self.position += found.size
        return message_id, found, self._view[start + PREFIX_SIZE : end]

    def lent(self, size: int) -> memoryview:
        """A borrower has received a message of ``size`` bytes, and hands it on: it is given out. Returns its data."""
        self.start = self._end = size
        self.position += size
        return self._view[PREFIX_SIZE:size]

    def lend(self) -> Loan | None:
        """What a caller needs to receive and send without this class; None if bytes are buffered here.

        The borrower adds the size of each message that it handles to :attr:`position`, and reports any other receive
        to :meth:`received`.
        """
        if self.start != self._end or self._broken:
            return None
        if self._end:
            self._clean()
        if self._loan is None or self._loan.buffer is not self._buffer:
            self._loan = Loan(self._buffer, (self._view,), self._sock.recvmsg_into, self._sock.send)
        return self._loan

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

        Raises TimedOut if the peer does not read, Disconnected if it is gone, VfioUserError for too many fds (E2BIG) or
        closed ones (EBADF). A TimedOut may have cut the message short; every later send then raises Disconnected.
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
            self.marks[HEAD] = self.start  # as late as can be: if the process dies in between, no reply is sent
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

    def break_off(self, why: str = "") -> None:
        """End the connection: what waits for the socket ends, and all later calls raise Disconnected (``why``)."""
        self._broken = why or self._broken
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and all descriptors that were not given out, and free the buffer."""
        self._fds.close()
        self._sock.close()
        self._loan, self._buffer = None, bytearray()
        self._view = memoryview(self._buffer)
        self.start = self._end = 0

    def _send_pieces(
        self, pieces: list[bytes | bytearray | memoryview], size: int, fds: Sequence[int], name: str, listening: bool
    ) -> None:
        """Send a message of ``size`` bytes that is in pieces."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if len(pieces) > _MOST_PIECES:
            pieces = [b"".join(pieces)]
        try:
            self.marks[HEAD] = self.start
            sent = self._sock.sendmsg(pieces, ancillary, SEND)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise unsendable(name, fds) or Disconnected(self._broken or f"sending {name}: {error.strerror}") from None
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
            listening = listening and self._end - self.start < 2 * self.max_message
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
                raise Disconnected(self._broken or f"sending {name}: {error.strerror}") from None

    def _wait(self, events: int, deadline: float, why: str) -> int:
        poll = select.poll()
        poll.register(self._sock, events)
        left = deadline - time.monotonic()
        self._shown[WAITS] = 1
        try:
            ready = poll.poll(left * 1000) if left > 0 else []
        finally:
            self._shown[WAITS] = 0
        if not ready:
            raise TimedOut(why)
        return ready[0][1]

    def _parse(self) -> Message | None:
        available = self._end - self.start
        if available < HEADER_SIZE:
            self._shown[TAIL] = self._end
            return None
        message_id, command, size, flags, error = HEADER.unpack_from(self._buffer, self.start)
        if not HEADER_SIZE <= size <= self.max_message:
            raise FramingError(
                f"{command_name(command)}: message size {size}, expected {HEADER_SIZE} to {self.max_message}",
                None if flags & (MessageFlags.REPLY | MessageFlags.NO_REPLY) else (message_id, command),
            )
        if available < size:
            self._shown[TAIL] = self._end
            self._make_room(size)
            return None
        payload = self._view[self.start + HEADER_SIZE : self.start + size]
        self.start += size
        self._shown[TAIL] = 0
        self.position += size
        return Message(
            message_id, command, flags, error, payload, self._fds.take(self.position) if self._fds.held else []
        )

    def _make_room(self, size: int) -> None:
        """Make the buffer hold a message of ``size`` bytes that begins at the first buffered byte."""
        if len(self._buffer) - self.start >= size:
            return
        kept = self._end - self.start
        if len(self._buffer) < size:
            larger = bytearray(size + _CHUNK)
            larger[:kept] = self._view[self.start : self._end]
            self._buffer, self._view = larger, memoryview(larger)
        else:
            self._buffer[:kept] = bytes(self._view[self.start : self._end])
            if self._journaled:
                moved(self._shown, kept)
                self._buffer[kept : self._end] = bytes(self._end - kept)
        self.start, self._end = 0, kept

    def _clean(self) -> None:
        """Begin at the start of the buffer again: all that was received is done with."""
        if self._end and self._journaled:
            if self._end <= SHORT:
                clear_short(self._buffer, 0)
            else:
                self._buffer[: self._end] = bytes(self._end)
            clear_marks(self._shown, 0)
        self.start = self._end = 0

    def _fill(self) -> bool:
        """Receive once, without waiting. Returns False if the socket was empty."""
        room = self._view
        if self.start == self._end:
            self._clean()
        else:
            if len(self._buffer) - self._end < HEADER_SIZE:
                self._make_room(len(self._buffer) - self.start + 1 if self.start == 0 else len(self._buffer))
            room = self._view[self._end :]
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into((room,), ANCILLARY, RECEIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Disconnected(self._broken or f"receiving: {error.strerror}") from None
        self.received(count, ancillary, flags)
        return True

    def received(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        """Take note of ``count`` bytes that a receive has put behind the buffered ones, and of its fds.

        Raises Disconnected for 0 bytes, and FramingError if descriptors were lost or are too many.
        """
        self._end += count
        self.drained = self._end < len(self._buffer)
        if ancillary:
            self._fds.keep(ancillary, self.position + self._end - self.start)
        if flags & CUT:
            raise FramingError(f"more than {KERNEL_MAX_FDS} file descriptors came at once, or none could be taken")
        if count == 0:
            raise Disconnected(self._broken)
