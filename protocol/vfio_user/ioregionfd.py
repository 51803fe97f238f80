"""The ioregionfd wire (version 3 of the proposed uapi): 32-byte commands one way, 32-byte responses back.

One command is in flight at a time on a socket, except for posted writes, which nobody waits for. The same
bytes are spoken by a kernel that has KVM_SET_IOREGION and by a VMM that relays its exits.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import NamedTuple

from vfio_user.errors import Disconnected, ProtocolError, TimedOut

COMMAND = struct.Struct("<BB6xQQQ")  # cmd, size exponent and resp, user_data, offset, data
RESPONSE = struct.Struct("<Q24x")
SIZE = 32
READ, WRITE = 0, 1
_RESPOND = 1 << 4
_SEND = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)  # the far end may hold the open file of a duplicate, too
_EXPONENTS = {1: 0, 2: 1, 4: 2, 8: 3}


class IoCommand(NamedTuple):
    """One access of a region: ``size`` is 1, 2, 4 or 8 bytes, ``offset`` counts from the region's start."""

    write: bool
    size: int
    respond: bool
    user_data: int
    offset: int
    data: int = 0


def encode_command(command: IoCommand) -> bytes:
    """32 bytes."""
    if command.size not in _EXPONENTS:
        raise ProtocolError(f"ioregionfd command: size {command.size}, expected 1, 2, 4 or 8")
    info = _EXPONENTS[command.size] | (_RESPOND if command.respond else 0)
    data = command.data & ((1 << 8 * command.size) - 1) if command.write else 0
    return COMMAND.pack(WRITE if command.write else READ, info, command.user_data, command.offset, data)


def decode_command(data: bytes | bytearray | memoryview) -> IoCommand:
    """From 32 bytes; a ProtocolError for anything that no kernel sends."""
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
    """32 bytes."""
    return RESPONSE.pack(value & 0xFFFF_FFFF_FFFF_FFFF)


def decode_response(data: bytes | bytearray | memoryview) -> int:
    """The value of a read; of no meaning for a write."""
    if len(data) != SIZE:
        raise ProtocolError(f"ioregionfd response: {len(data)} bytes, expected {SIZE}")
    value: int = RESPONSE.unpack(data)[0]
    return value


class IoRegionServer:
    """The device's end. It owns the socket and never waits."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._stream = sock.type == socket.SOCK_STREAM
        self._buffer = bytearray(SIZE if self._stream else SIZE + 1)  # room to notice a packet that is too long
        self._view = memoryview(self._buffer)
        self._filled = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def receive(self) -> IoCommand | None:
        """The next command, or None when none has arrived whole. Disconnected when the far end is gone."""
        try:
            count = self._sock.recv_into(self._view[self._filled :], 0, socket.MSG_DONTWAIT)
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
        return decode_command(self._view[:count])

    def respond(self, value: int) -> None:
        """Answer the command in flight."""
        try:
            sent = self._sock.send(encode_response(value), _SEND)
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
    """The kernel's end, as a relay plays it, on a duplicate of ``fd``. Use it from one thread at a time.

    Responses have no ids: after a TimedOut, the late one would pass for the next one's, and all is Disconnected.
    Data is 1, 2, 4 or 8 bytes, little-endian as the guest stores it.
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
        """A posted write: waits only while the socket's buffer is full."""
        self._send(IoCommand(True, len(data), False, user_data, offset, int.from_bytes(data, "little")))

    def write(self, user_data: int, offset: int, data: bytes) -> None:
        """A write that the device acknowledges."""
        self._send(IoCommand(True, len(data), True, user_data, offset, int.from_bytes(data, "little")))
        self._receive()

    def read(self, user_data: int, offset: int, size: int) -> bytes:
        """A read of ``size`` bytes."""
        self._send(IoCommand(False, size, True, user_data, offset))
        return (self._receive() & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def close(self) -> None:
        """Close the duplicate."""
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
