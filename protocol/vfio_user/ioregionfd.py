"""The ioregionfd wire (version 3 of the proposed uapi): 32-byte commands one way, 32-byte responses back.

A posted write gets no response. Of the other commands, one is in flight on a socket at a time. A kernel with
KVM_SET_IOREGION and a VMM that relays exits send the same bytes.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from vfio_user.errors import Disconnected, ProtocolError, TimedOut

COMMAND = struct.Struct("<BB6xQQQ")  # cmd, size exponent and resp, user_data, offset, data
RESPONSE = struct.Struct("<Q24x")
SIZE = 32
READ, WRITE = 0, 1
_RESPOND = 1 << 4
_SEND = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)  # the flag of the open file is shared with the peer
_EXPONENTS = {1: 0, 2: 1, 4: 2, 8: 3}


class IoCommand(NamedTuple):
    """One access to a region: ``size`` is 1, 2, 4 or 8 bytes, ``offset`` counts from the region's start.

    ``respond`` says that the sender waits for a response. ``data`` is the value of a write.
    """

    write: bool
    size: int
    respond: bool
    user_data: int
    offset: int
    data: int = 0


def encode_command(command: IoCommand) -> bytes:
    """The command's 32 bytes. Raises ProtocolError for an impossible size."""
    if command.size not in _EXPONENTS:
        raise ProtocolError(f"ioregionfd command: size {command.size}, expected 1, 2, 4 or 8")
    info = _EXPONENTS[command.size] | (_RESPOND if command.respond else 0)
    data = command.data & ((1 << 8 * command.size) - 1) if command.write else 0
    return COMMAND.pack(WRITE if command.write else READ, info, command.user_data, command.offset, data)


def decode_command(data: bytes | bytearray | memoryview) -> IoCommand:
    """The command in 32 bytes. Raises ProtocolError for a command that no kernel sends."""
    if len(data) != SIZE:
        raise ProtocolError(f"ioregionfd command: {len(data)} bytes, expected {SIZE}")
    kind, info, user_data, offset, value = COMMAND.unpack(data)
    exponent = info & 0xF
    respond = bool(info & _RESPOND)
    if kind > WRITE:
        raise ProtocolError(f"ioregionfd command: cmd {kind}, expected 0 (read) or 1 (write)")
    if exponent > 3 or info >> 5:
        raise ProtocolError(f"ioregionfd command: size and flags {info:#x}, expected a size exponent of 0 to 3")
    if kind == READ and not respond:
        raise ProtocolError("ioregionfd command: a read without resp")
    size = 1 << exponent
    return IoCommand(kind == WRITE, size, respond, user_data, offset, value & ((1 << 8 * size) - 1))


def encode_response(value: int) -> bytes:
    """The response's 32 bytes, with the low 64 bits of ``value``."""
    return RESPONSE.pack(value & 0xFFFF_FFFF_FFFF_FFFF)


def decode_response(data: bytes | bytearray | memoryview) -> int:
    """The value in a response: what a read gives. It means nothing for a write."""
    if len(data) != SIZE:
        raise ProtocolError(f"ioregionfd response: {len(data)} bytes, expected {SIZE}")
    value: int = RESPONSE.unpack(data)[0]
    return value


class IoRegionServer:
    """The device's end of the wire. It owns the socket, and never waits. Takes stream and SEQPACKET sockets."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._stream = sock.type == socket.SOCK_STREAM
        self._buffer = bytearray(SIZE if self._stream else SIZE + 1)  # room to notice a packet that is too long
        self._view = memoryview(self._buffer)
        self._filled = 0

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._sock.fileno()

    def receive(self, room: memoryview | None = None) -> IoCommand | None:
        """The next command, or None if none has arrived whole. From a SEQPACKET socket it is received into ``room``.

        That has a byte more than :data:`SIZE`, to notice a packet that is too long.

        Raises Disconnected if the far end is gone, ProtocolError for a command that no kernel sends.
        """
        try:
            into = self._view[self._filled :] if room is None else room
            count = self._sock.recv_into(into, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Disconnected(f"ioregionfd: {error.strerror}") from None
        if count == 0:
            raise Disconnected("ioregionfd: the far end has closed the socket")
        if self._stream:
            self._filled += count
            if self._filled < SIZE:
                return None
            self._filled, count = 0, SIZE
        return decode_command((self._view if room is None else room)[:count])

    def respond(self, value: int, done: Callable[[], None] = lambda: None) -> None:
        """Send the response to the command in flight. Raises TimedOut if the socket is full, Disconnected.

        ``done`` is called right before: it notes that the command is answered, for a successor of this process.
        """
        response = encode_response(value)
        try:
            done()
            sent = self._sock.send(response, _SEND)
        except BlockingIOError:
            raise TimedOut("ioregionfd: the far end does not read its responses") from None
        except OSError as error:
            raise Disconnected(f"ioregionfd: {error.strerror}") from None
        if sent != SIZE:
            raise Disconnected("ioregionfd: a response was cut short")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class IoRegionClient:
    """The kernel's end of the wire, for a relay. It owns a duplicate of ``fd``. Use it from one thread at a time.

    Data is 1, 2, 4 or 8 bytes, little-endian, as the guest stores it. Methods raise TimedOut if the device does not
    answer for ``timeout`` seconds, and Disconnected if it is gone. Responses have no ids: a late response would be
    taken for the next one. So after a TimedOut every call raises Disconnected.
    """

    def __init__(self, fd: int, timeout: float = 5.0) -> None:
        own = os.dup(fd)
        try:
            self._sock = socket.socket(fileno=own)
        except OSError as error:
            os.close(own)
            raise ProtocolError(f"ioregionfd: the descriptor is no socket: {error.strerror}") from None
        self._sock.setblocking(False)
        self._timeout = timeout
        self._late = False

    def post(self, user_data: int, offset: int, data: bytes) -> None:
        """Send a posted write. It waits only while the socket's buffer is full."""
        self._send(IoCommand(True, len(data), False, user_data, offset, int.from_bytes(data, "little")))

    def write(self, user_data: int, offset: int, data: bytes) -> None:
        """Send a write, and wait for the device's response."""
        self._send(IoCommand(True, len(data), True, user_data, offset, int.from_bytes(data, "little")))
        self._receive()

    def read(self, user_data: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes, and wait for the device's response."""
        self._send(IoCommand(False, size, True, user_data, offset))
        return (self._receive() & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def close(self) -> None:
        """Close the duplicate. The caller's ``fd`` stays open."""
        self._sock.close()

    def _send(self, command: IoCommand) -> None:
        data = encode_command(command)
        if self._late:
            raise Disconnected("ioregionfd: the device has let a command time out")
        deadline = 0.0
        while data:
            try:
                data = data[self._sock.send(data, _SEND) :]
            except BlockingIOError:
                deadline = deadline or time.monotonic() + self._timeout
                self._wait(select.POLLOUT, deadline, "the device does not read its commands")
            except OSError as error:
                raise Disconnected(f"ioregionfd: {error.strerror}") from None

    def _receive(self) -> int:
        deadline = time.monotonic() + self._timeout
        data = b""
        while len(data) < SIZE:
            try:
                part = self._sock.recv(SIZE - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, "the device does not answer")
                continue
            except OSError as error:
                raise Disconnected(f"ioregionfd: {error.strerror}") from None
            if not part:
                raise Disconnected("ioregionfd: the device has closed the socket")
            data += part
        return decode_response(data)

    def _wait(self, event: int, deadline: float, why: str) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            self._late = True
            raise TimedOut(f"ioregionfd: {why}")
