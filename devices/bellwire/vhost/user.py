"""The front end of vhost-user: a back end that is a program on a UNIX socket."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bellwire.unix_sockets import connect
from bellwire.vhost.back_channel import BackChannel
from bellwire.vhost.backend import Connected, Listener, Ring
from bellwire.vhost.connection import PATIENCE, Connection
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece
from bellwire.vhost.messages import (
    LARGEST_CONFIG,
    MOST_REGIONS,
    U64,
    Inflight,
    ProtocolFeature,
    Request,
    VringAddress,
    VringState,
    pack_config,
    pack_table,
    unpack_config,
)
from vfio_user.eventfds import SIZE, take

PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
_WANTED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
MOST_SLOTS = 1024
LARGEST_TRACK = 64 << 20
"""Bytes of the memory that a back end may want for what is in flight."""


class Track:
    """Memory in which the back end writes down what is in flight. It outlives a connection."""

    def __init__(self, place: Inflight, fd: int) -> None:
        self.place = place
        self.fd = fd

    def close(self) -> None:
        """Forget it."""
        os.close(self.fd)


class VhostUser:
    """A :class:`~bellwire.vhost.backend.Backend` at the other end of ``sock``, which it owns. Making one negotiates.

    ``kept`` is the note of the :attr:`connection` of a process that has died: this one goes on with it.
    """

    needs_addresses = False

    def __init__(self, sock: socket.socket, kept: Mapping[str, Any] | None = None) -> None:
        self.track_memory: Track | None = None
        self._wire = Connection(sock)
        self._channel: BackChannel | None = None
        self._listener: Listener | None = None
        self._error = -1
        self._table: list[Piece] = []
        try:
            self._negotiate(kept)
        except BaseException:
            self.hang_up()
            raise

    @classmethod
    def to(cls, path: Path, before: VhostUser | None = None) -> VhostUser:
        """Connect to the one that listens at ``path``.

        ``before`` is the one whose place it takes, if that has gone: what was in flight then is taken over.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(PATIENCE)
        try:
            connect(sock, path)
        except OSError as error:
            sock.close()
            if error.errno == errno.EAGAIN:  # others wait to be accepted (unix(7))
                raise BackendLost(f"the back end at {path} does not accept connections") from None
            raise BackendLost(f"no back end at {path}: {error.strerror or error}") from None
        backend = cls(sock)
        if before is not None and ProtocolFeature.INFLIGHT_SHMFD in backend._protocol:
            backend.track_memory, before.track_memory = before.track_memory, None
        return backend

    def _negotiate(self, kept: Mapping[str, Any] | None) -> None:
        wire = self._wire
        with wire.limited():
            if kept is not None:
                wire.resume()
            self.features = wire.number(Request.GET_FEATURES)
            self._protocol = self._agree() if kept is None else ProtocolFeature(kept["protocol"])
            wire.acknowledges = ProtocolFeature.REPLY_ACK in self._protocol
            self.most_queues = 2
            if ProtocolFeature.MQ in self._protocol:
                self.most_queues = wire.number(Request.GET_QUEUE_NUM)
            self._slots = 0
            if ProtocolFeature.CONFIGURE_MEM_SLOTS in self._protocol:
                self._slots = min(wire.number(Request.GET_MAX_MEM_SLOTS), MOST_SLOTS)
            if ProtocolFeature.BACKEND_REQ in self._protocol:
                self._channel = BackChannel()
                self._wire.listen_to(self._channel.fileno(), self._channel.serve)
                wire.tell(Request.SET_BACKEND_REQ_FD, fds=[self._channel.theirs])
                self._channel.hand_over()

    def _agree(self) -> ProtocolFeature:
        """Become the front end. Returns what both ends know of the protocol."""
        wire = self._wire
        wire.tell(Request.SET_OWNER)
        if not self.features & PROTOCOL_FEATURES:
            return ProtocolFeature(0)
        known = ProtocolFeature(wire.number(Request.GET_PROTOCOL_FEATURES) & int(_WANTED))
        if ProtocolFeature.BACKEND_REQ not in known:
            known &= ~ProtocolFeature.CONFIG  # without its channel, nobody would hear of changes
        wire.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(known))
        return known

    @property
    def connection(self) -> Connected | None:
        """The socket, and what another process needs to know of it.

        None if the back end lacks protocol features: it may not know what :meth:`Connection.resume` asks.
        """
        if not self.features & PROTOCOL_FEATURES:
            return None
        note = {"protocol": int(self._protocol), "table": [piece.identity for piece in self._table]}
        return Connected(self._wire.fileno(), -1 if self._channel is None else self._channel.fileno(), note)

    def known(self, table: Sequence[Piece], rings: Sequence[int]) -> None:
        """The process before has told it of this memory. It reports errors of these rings here from now on."""
        self._table = list(table)
        for index in rings:
            self._wire.tell(Request.SET_VRING_ERR, U64.pack(index), [self._error])

    @property
    def tracks(self) -> bool:
        """Whether it has memory in which the back end before it has written down what was in flight."""
        return self.track_memory is not None

    def limited(self) -> AbstractContextManager[None]:
        """All requests in the block together take at most PATIENCE seconds."""
        return self._wire.limited()

    def listen(self, listener: Listener) -> None:
        """Report to ``listener``: a closed connection, changes of the configuration, errors of rings."""
        self._listener = listener
        self._error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        listener.watch(self._wire.fileno(), lambda: listener.lost("the back end has closed the connection"))
        listener.watch(self._error, self._ring_failed)
        if self._channel is not None:
            self._channel.changed = listener.config_changed
            listener.watch(self._channel.fileno(), self._heard)

    def accept(self, features: int) -> None:
        """SET_FEATURES, with the bit that makes rings wait for SET_VRING_ENABLE."""
        own = self.features & PROTOCOL_FEATURES
        self._wire.tell(Request.SET_FEATURES, U64.pack(features & self.features | own))

    def share(self, table: Sequence[Piece]) -> None:
        """Memory by ADD_MEM_REG and REM_MEM_REG, or all of it by SET_MEM_TABLE. The back end has done it on return."""
        table = list(table)
        if table == self._table:
            return
        if not table and not self._slots:
            raise BackendLost("the back end forgets guest memory only with its connection, which is closed now")
        most = self._slots or MOST_REGIONS
        if len(table) > most:
            raise BackendError(f"guest memory is in {len(table)} pieces, and the back end takes {most}")
        if self._slots:
            for piece in [each for each in self._table if each not in table]:
                try:
                    self._wire.tell(Request.REM_MEM_REG, piece.region.pack_single())
                except BackendError as error:
                    raise BackendLost(f"the client takes memory back, but {error}") from None
                self._table.remove(piece)
            for piece in [each for each in table if each not in self._table]:
                self._wire.tell(Request.ADD_MEM_REG, piece.region.pack_single(), [piece.fd])
                self._table.append(piece)
        else:
            payload = pack_table([piece.region for piece in table])
            self._wire.tell(Request.SET_MEM_TABLE, payload, [piece.fd for piece in table])
        self._table = table
        self._wire.settle()

    def track(self, queues: int, size: int, *, fresh: bool) -> None:
        """GET_INFLIGHT_FD once a driver, and SET_INFLIGHT_FD at each start."""
        if ProtocolFeature.INFLIGHT_SHMFD not in self._protocol:
            return
        if fresh:
            self.forget()
        if self.track_memory is None:
            reply = self._wire.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, queues, size).pack(), most_fds=1)
            self.track_memory = self._checked(Inflight.unpack(reply.payload), reply.fds)
        track = self.track_memory
        if track is not None:
            place = track.place._replace(queues=queues, slots=size)
            self._wire.tell(Request.SET_INFLIGHT_FD, place.pack(), [track.fd])

    @property
    def record(self) -> tuple[int, Mapping[str, Any]] | None:
        """The memory's file, and where in it what is in flight is written down."""
        track = self.track_memory
        return None if track is None else (track.fd, track.place._asdict())

    def inherit(self, fd: int, note: Mapping[str, Any]) -> None:
        """Give this back end the memory of the one that another process had, if it wants any."""
        self.forget()
        if ProtocolFeature.INFLIGHT_SHMFD not in self._protocol:
            os.close(fd)
            return
        self.track_memory = self._checked(Inflight(**note), [fd])

    def start(self, ring: Ring) -> None:
        """SET_VRING_NUM, _BASE, _ADDR and _ERR. A kick and a call come next, and :meth:`enable` last."""
        wire, index = self._wire, ring.number
        wire.tell(Request.SET_VRING_NUM, VringState(index, ring.size).pack())
        wire.tell(Request.SET_VRING_BASE, VringState(index, ring.base).pack())
        wire.tell(Request.SET_VRING_ADDR, VringAddress(index, ring.desc, ring.used, ring.avail).pack())
        if self._error >= 0:
            wire.tell(Request.SET_VRING_ERR, U64.pack(index), [self._error])

    def kick(self, index: int, fd: int) -> None:
        """SET_VRING_KICK: this starts the ring."""
        self._wire.tell(Request.SET_VRING_KICK, U64.pack(index), [fd])

    def call(self, index: int, fd: int) -> None:
        """SET_VRING_CALL. When this returns, the back end does not signal the descriptor before it any more."""
        self._wire.tell(Request.SET_VRING_CALL, U64.pack(index), [fd])
        self._wire.settle()

    def enable(self, index: int, on: bool) -> None:
        """SET_VRING_ENABLE, for a back end with protocol features: the rings of others are enabled from the start."""
        if self.features & PROTOCOL_FEATURES:
            self._wire.tell(Request.SET_VRING_ENABLE, VringState(index, int(on)).pack())

    def stop(self, index: int) -> int:
        """GET_VRING_BASE: the back end has finished what it had begun."""
        reply = self._wire.ask(Request.GET_VRING_BASE, VringState(index, 0).pack())
        found = VringState.unpack(reply.payload, "GET_VRING_BASE")
        if found.ring != index:
            raise BackendLost(f"GET_VRING_BASE: the reply is about ring {found.ring}, expected {index}")
        return found.number

    def reset(self) -> None:
        """RESET_DEVICE, if it knows that."""
        if ProtocolFeature.RESET_DEVICE in self._protocol:
            self._wire.tell(Request.RESET_DEVICE)

    def config(self, size: int) -> bytes | None:
        """GET_CONFIG. Some back ends answer nothing but their own size or less: they are asked for less and less."""
        if ProtocolFeature.CONFIG not in self._protocol or not size:
            return None
        with self._wire.limited():
            for most in (size, *range(min(size, LARGEST_CONFIG // 2) - 4, 0, -4)):
                found = unpack_config(self._wire.ask(Request.GET_CONFIG, pack_config(0, bytes(most))).payload, most)
                if found is not None:
                    return found
        return b""

    def set_config(self, offset: int, data: bytes) -> None:
        """SET_CONFIG."""
        if ProtocolFeature.CONFIG in self._protocol:
            self._wire.tell(Request.SET_CONFIG, pack_config(offset, data))

    def close(self) -> None:
        """Close the connection. What it has tracked stays, for :attr:`track_memory` of the next one."""
        if self._listener is not None:
            self._listener.unwatch(self._wire.fileno())
            self._listener.unwatch(self._error)
            os.close(self._error)
        if self._channel is not None:
            if self._listener is not None:
                self._listener.unwatch(self._channel.fileno())
            self._wire.stop_listening()
            self._channel.close()
            self._channel = None
        self._listener = None
        self._wire.close()

    def hang_up(self) -> None:
        """End the connection, which the ledger may hold open."""
        self._wire.hang_up()
        self.close()

    def forget(self) -> None:
        """Close the memory of what was in flight."""
        if self.track_memory is not None:
            self.track_memory.close()
            self.track_memory = None

    def _checked(self, place: Inflight, fds: list[int]) -> Track | None:
        """The memory that the back end has offered. None if it wants none. Raises BackendLost for what cannot be."""
        if not fds or not place.size:
            for fd in fds:
                os.close(fd)
            return None
        (fd,) = fds
        there = os.fstat(fd).st_size
        if place.size > LARGEST_TRACK or place.offset + place.size > there:
            os.close(fd)
            raise BackendLost(
                f"GET_INFLIGHT_FD: {place.size} bytes at {place.offset} of a file of {there}, "
                f"at most {LARGEST_TRACK} expected"
            )
        return Track(place, fd)

    def _heard(self) -> None:
        """The back end asks for something."""
        if self._channel is not None and self._listener is not None:
            try:
                self._channel.serve()
                self._channel.tell()
            except BackendLost as error:
                self._listener.lost(str(error))

    def _ring_failed(self) -> None:
        """The back end has signalled the error descriptor of a ring."""
        take(self._error, bytearray(SIZE))
        if self._listener is not None:
            self._listener.failed("the back end reports an error in a ring")
