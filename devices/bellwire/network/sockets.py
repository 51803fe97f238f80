"""Frames over UNIX sockets, in the formats of QEMU's ``-netdev dgram`` and ``-netdev stream``. They need no privilege.

A datagram is one frame. On a stream, four bytes with the length (network order) precede each frame. Frames on these
sockets have no virtio-net header, so packets to the guest get an empty one, and there are no offloads.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from bellwire.network.link import (
    HEADER_SIZE,
    LARGEST_PACKET,
    NUM_BUFFERS,
    ONE_BUFFER,
    Buffers,
    LinkEnd,
    LinkError,
    Offload,
    Places,
)
from bellwire.paths import Place, why
from bellwire.pieces import MOST_PIECES, one_call
from bellwire.unix_sockets import Bound, connect

LENGTH = struct.Struct(">I")
LARGEST_FRAME = LARGEST_PACKET - HEADER_SIZE
_NO_HEADER = bytes(HEADER_SIZE)
_BUFFER = 1 << 20  # bytes of frames that the kernel may queue


class SocketLink:
    """The common base of both links: one end, no offloads. A packet is a system call or several."""

    offloads = False
    ends: Sequence[LinkEnd]

    def offload(self, what: Offload) -> None:
        """Do nothing: these links have no offloads."""

    def use(self, pairs: int) -> None:
        """Do nothing: there is only one pair of queues."""

    def carrier(self, up: bool) -> None:
        """Do nothing: these formats cannot express the state of the cable."""

    def receive_each(self, into: Places, room: int, packet: memoryview, sizes: list[int]) -> None:
        """Receive packets to these places, while there are any."""
        (end,), whole = self.ends, [packet]
        memory, starts = into
        for start in starts:
            if not (size := end.receive(whole)):
                return
            sizes.append(size)
            if size > room:
                return
            packet[NUM_BUFFERS] = ONE_BUFFER
            memory[start : start + size] = packet[:size]

    def send_each(self, places: Places, sizes: Sequence[int]) -> list[int]:
        """Send packets of one piece each. Returns the sizes of those that were dropped."""
        (end,), (memory, starts) = self.ends, places
        pairs = zip(starts, sizes, strict=True)
        return [size for start, size in pairs if not end.send([memory[start : start + size]])]


class DatagramLink(SocketLink):
    """Receives datagrams at ``local``, and sends to ``remote``. Either may be None; the remote may come and go."""

    def __init__(self, local: Path | None, remote: Path | None) -> None:
        self._remote = remote
        self._address = ""
        self._pinned = -1
        self._bound: Bound | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.ends = [self]
        if local:
            try:
                self._bound = Bound(self._socket, local)
            except OSError as error:
                self._socket.close()
                raise LinkError(f"socket {local}: {why(error)}") from error

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def receive(self, buffers: Buffers) -> int:
        """Receive one datagram, after an empty header. Returns 0 if there is none."""
        try:
            size: int = self._socket.recvmsg_into(without_header(buffers))[0]
        except OSError:
            return 0
        buffers[0][:HEADER_SIZE] = _NO_HEADER
        return HEADER_SIZE + size if size else 0

    def send(self, packet: Buffers) -> bool:
        """Send one datagram. False if the remote is away or too slow: the frame is dropped."""
        if self._remote is None or (self._pinned < 0 and not self._find(self._remote)):
            return False
        try:
            self._socket.sendmsg(one_call(without_header(packet)), [], 0, self._address)
        except ConnectionRefusedError:  # the socket has been closed: another one may be at its path by now
            self._forget()
            return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket, and remove its name."""
        if self._bound is not None:
            self._bound.remove()
            self._bound = None
        self._forget()
        self._socket.close()

    def _find(self, remote: Path) -> bool:
        """Take hold of the socket at ``remote``, so that no link can send frames elsewhere later."""
        try:
            with Place(remote) as place:
                self._pinned = place.pin()
        except OSError:
            return False
        self._address = f"/proc/self/fd/{self._pinned}"
        return True

    def _forget(self) -> None:
        if self._pinned >= 0:
            os.close(self._pinned)
            self._pinned = -1


class StreamLink(SocketLink):
    """A stream socket: it connects to ``path``, or with ``listen`` accepts one peer after the other there.

    The descriptor of a listening link can also be read when a peer connects: :meth:`receive` then accepts the peer.
    """

    def __init__(self, path: Path, *, listen: bool = False) -> None:
        self._path = path
        self._listens = listen
        self._listener: socket.socket | None = None
        self._bound: Bound | None = None
        self._peer: socket.socket | None = None
        self._epoll = select.epoll()
        self._input = bytearray()
        self._output = bytearray()
        self.ends = [self]
        try:
            if listen:
                self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                self._bound = Bound(self._listener, path)
                self._epoll.register(self._listener, select.EPOLLIN)
            else:
                peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._take(peer)
                connect(peer, path)
                peer.setblocking(False)
        except OSError as error:
            self.close()
            raise LinkError(f"socket {path}: {why(error)}") from error

    def fileno(self) -> int:
        """A descriptor that can be read when a frame or a peer may be there, or more of a frame can be sent."""
        return self._epoll.fileno()

    def receive(self, buffers: Buffers) -> int:
        """Receive the next whole frame, after an empty header. Returns 0 if there is none."""
        while (size := self._frame(buffers)) == 0:
            if self._peer is None:
                self._accept()
            if self._output:
                self._drain()
            if self._peer is None or not self._read(self._peer):
                if self._peer is None and self._listener is None:
                    raise LinkError(f"socket {self._path}: the peer has gone")
                return 0
        return size

    def send(self, packet: Buffers) -> bool:
        """Send one frame. False without a peer, or if an earlier frame is not sent yet: the frame is dropped."""
        if self._output:
            self._drain()
        if self._peer is None or self._output:
            return False
        frame = one_call(without_header(packet), MOST_PIECES - 1)
        length = sum(map(len, frame))
        try:
            sent = self._peer.sendmsg([LENGTH.pack(length), *frame])
        except OSError:  # the socket is full, or the peer has gone: receive() finds out which
            return False
        if sent < LENGTH.size + length:  # half a frame would garble all later ones, so the rest is kept and sent first
            self._output += b"".join([LENGTH.pack(length), *frame])[sent:]
            self._epoll.modify(self._peer, select.EPOLLIN | select.EPOLLOUT)
        return True

    def close(self) -> None:
        """Close the connection and the listening socket. A second call does nothing."""
        self._lose()
        if self._listener is not None:
            if self._bound is not None:
                self._bound.remove()
            self._listener.close()
            self._listener = None
        self._epoll.close()

    def _frame(self, buffers: Buffers) -> int:
        """Take one frame out of the bytes received, if it is complete."""
        if len(self._input) < LENGTH.size:
            return 0
        (length,) = LENGTH.unpack_from(self._input)
        if not 0 < length <= LARGEST_FRAME:
            self._lose()  # the start of the next frame cannot be found
            return 0
        end = LENGTH.size + length
        if len(self._input) < end:
            return 0
        buffers[0][:HEADER_SIZE] = _NO_HEADER
        at = LENGTH.size
        for piece in without_header(buffers):
            some = min(len(piece), end - at)
            piece[:some] = self._input[at : at + some]
            at += some
        del self._input[:end]
        return HEADER_SIZE + int(length)

    def _read(self, peer: socket.socket) -> bool:
        try:
            data = peer.recv(_BUFFER)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lose()
        self._input += data
        return bool(data)

    def _drain(self) -> None:
        """Send the rest of a frame that did not fit in the socket."""
        if self._peer is None:
            return
        try:
            del self._output[: self._peer.send(self._output)]
        except OSError:  # as in send()
            return
        if not self._output:
            self._epoll.modify(self._peer, select.EPOLLIN)

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._epoll.unregister(self._listener)  # the next peer waits in the backlog
            self._take(peer)

    def _take(self, peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._peer = peer
        self._epoll.register(peer, select.EPOLLIN)

    def _lose(self) -> None:
        """The peer has gone: drop frames that were partly received or partly sent."""
        self._input.clear()
        self._output.clear()
        if self._peer is not None:
            self._epoll.unregister(self._peer)
            self._peer.close()
            self._peer = None
            if self._listener is not None:
                self._epoll.register(self._listener, select.EPOLLIN)


def without_header(packet: Buffers) -> list[memoryview]:
    """The frame of a packet, without the header."""
    left = HEADER_SIZE
    frame = []
    for piece in packet:
        if left < len(piece):
            frame.append(piece[left:] if left else piece)
        left = max(0, left - len(piece))
    return frame
