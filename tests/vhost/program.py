"""A back end of the tests' own, on a thread: it serves rings for real, may crash at any time, and may misbehave.

Its device type sends back what it is sent, backwards. It writes down what is in flight as the text has it ("Inflight
I/O tracking", split rings), and can keep buffers to itself until it is told to let go.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwire.vhost.messages import HEADER, Inflight, ProtocolFeature, Request

PATIENCE = 30.0
VERSION_1, EVENT_IDX, PROTOCOL_FEATURES, OWN = 1 << 32, 1 << 29, 1 << 30, 1 << 5
USUAL = VERSION_1 | PROTOCOL_FEATURES | OWN
EVERYTHING = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE = 1, 2
RECORD, RECORD_HEAD = 16, 16  # bytes in the memory for what is in flight
Answer = bytes | tuple[bytes, list[int]] | None


@dataclass
class Ring:
    """What the front end has said of one ring."""

    size: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    kick: int = -1
    call: int = -1
    enabled: bool = False
    held: list[int] = field(default_factory=list)


class Program:
    """The back end at ``path``. ``said`` has the name of each request, ``rings`` and ``regions`` what it was told."""

    def __init__(
        self,
        path: Path,
        *,
        features: int = USUAL,
        protocol: ProtocolFeature = EVERYTHING,
        config: bytes = b"configuration",
        queues: int = 64,
        holds: bool = False,
        answer: Callable[[Request], bytes | None] = lambda _: None,
    ) -> None:
        self.path, self.features, self.protocol, self.config, self.queues = path, features, protocol, config, queues
        self.holds = holds
        self.answer = answer
        """Gives a whole message in the place of the reply to a request; b"" for silence."""
        self.said: list[str] = []
        self.accepted = 0
        self.rings: dict[int, Ring] = {}
        self.regions: dict[tuple[int, int, int, int], mmap.mmap] = {}
        self.track: mmap.mmap | None = None
        self.channel: socket.socket | None = None
        self.errors: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._ours, self._theirs = socket.socketpair()
        self._work: list[Callable[[], None]] = []
        self._done = threading.Event()
        self._end = self.crashed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def crash(self) -> None:
        """End at once, whatever is in its hands."""
        self._end = self.crashed = True
        self._ours.send(b"x")
        self._thread.join()
        self._ours.close()
        self._theirs.close()

    def do(self, work: Callable[[], None]) -> None:
        """Run ``work`` on its thread, and wait for it."""
        self._done.clear()
        self._work.append(work)
        self._ours.send(b"x")
        assert self._done.wait(PATIENCE)

    def let_go(self, order: Callable[[list[int]], list[int]] = list) -> None:
        """Return what is held, in this order."""

        def work() -> None:
            for ring in self.rings.values():
                heads, ring.held = order(ring.held), []
                for head in heads:
                    self._finish(ring, head)

        self.do(work)

    def tell(self, request: int, payload: bytes = b"", *, flags: int = 1) -> None:
        """Send a request on the back end's own channel."""
        assert self.channel is not None
        self.channel.send(HEADER.pack(request, flags, len(payload)) + payload)

    def pause(self, seconds: float) -> None:
        """Be slow, on its thread."""
        threading.Event().wait(seconds)

    # -- its thread

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget)
            stack.enter_context(self._listener)
            connection: socket.socket | None = None
            while True:
                poll = select.poll()
                for fd in (self._theirs, connection or self._listener):
                    poll.register(fd, select.POLLIN)
                kicks = {ring.kick: ring for ring in self.rings.values() if ring.kick >= 0 and ring.enabled}
                for kick in kicks:
                    poll.register(kick, select.POLLIN)
                ready = [fd for fd, _ in poll.poll()]
                if self._theirs.fileno() in ready:
                    self._theirs.recv(1)
                    if self._end:
                        return
                    while self._work:
                        self._work.pop(0)()
                    self._done.set()
                for kick in kicks.keys() & set(ready):
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(kick)
                    self._serve(kicks[kick])
                if connection is None:
                    if self._listener.fileno() in ready:
                        connection = stack.enter_context(self._listener.accept()[0])
                elif connection.fileno() in ready and not self._handle(connection):
                    connection.close()
                    connection = None
                    self._forget()

    def _forget(self) -> None:
        for fd in self.errors:
            os.close(fd)
        self.errors.clear()
        for ring in self.rings.values():
            for fd in (ring.kick, ring.call):
                if fd >= 0:
                    os.close(fd)
        self.rings.clear()
        for memory in self.regions.values():
            memory.close()
        self.regions.clear()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.track is not None:
            self.track.close()
            self.track = None

    def _handle(self, connection: socket.socket) -> bool:
        try:
            head, fds, _, _ = socket.recv_fds(connection, HEADER.size, 8)
        except ConnectionResetError:  # the front end has not read all
            return False
        if len(head) < HEADER.size:
            return False
        number, flags, size = HEADER.unpack(head)
        payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
        request = Request(number)
        self.said.append(request.name)
        given = self.answer(request)
        if given is not None:
            for fd in fds:
                os.close(fd)
            with contextlib.suppress(OSError):
                connection.send(given)
            return True
        reply: Any = getattr(self, f"_{request.name.lower()}")(payload, fds)
        if reply is None and flags & 8 and self.protocol & ProtocolFeature.REPLY_ACK:
            reply = struct.pack("<Q", 0)
        if reply is not None:
            data, out = reply if isinstance(reply, tuple) else (reply, [])
            with contextlib.suppress(OSError):
                socket.send_fds(connection, [HEADER.pack(number, 5, len(data)) + data], out)
            for fd in out:
                os.close(fd)
        return True

    def _ring(self, payload: bytes) -> Ring:
        return self.rings.setdefault(struct.unpack_from("<I", payload)[0] & 0xFF, Ring())

    def _get_features(self, _: bytes, __: list[int]) -> Answer:
        return struct.pack("<Q", self.features)

    def _set_features(self, payload: bytes, _: list[int]) -> None:
        (self.accepted,) = struct.unpack("<Q", payload)

    def _set_owner(self, _: bytes, __: list[int]) -> None:
        pass

    def _get_protocol_features(self, _: bytes, __: list[int]) -> Answer:
        return struct.pack("<Q", int(self.protocol) | 1 << 40)

    def _set_protocol_features(self, payload: bytes, _: list[int]) -> None:
        assert struct.unpack("<Q", payload)[0] & ~int(self.protocol) == 0

    def _get_queue_num(self, _: bytes, __: list[int]) -> Answer:
        return struct.pack("<Q", self.queues)

    def _get_max_mem_slots(self, _: bytes, __: list[int]) -> Answer:
        return struct.pack("<Q", 32)

    def _set_backend_req_fd(self, _: bytes, fds: list[int]) -> None:
        if self.channel is not None:
            self.channel.close()
        self.channel = socket.socket(fileno=fds[0])

    def _get_config(self, payload: bytes, _: list[int]) -> Answer:
        offset, size, flags = struct.unpack_from("<III", payload)
        if size > len(self.config):
            return b""
        return struct.pack("<III", offset, size, flags) + self.config[offset : offset + size]

    def _set_config(self, payload: bytes, _: list[int]) -> None:
        offset, size, _flags = struct.unpack_from("<III", payload)
        self.config = self.config[:offset] + payload[12:] + self.config[offset + size :]

    def _map(self, region: bytes, fd: int) -> None:
        guest, size, user, offset = struct.unpack("<QQQQ", region)
        self.regions[guest, size, user, offset] = mmap.mmap(fd, size, offset=offset)
        os.close(fd)

    def _add_mem_reg(self, payload: bytes, fds: list[int]) -> None:
        self._map(payload[8:], fds[0])

    def _rem_mem_reg(self, payload: bytes, _: list[int]) -> None:
        self.regions.pop(struct.unpack("<QQQQ", payload[8:])).close()

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> None:
        for memory in self.regions.values():
            memory.close()
        self.regions.clear()
        for number, fd in enumerate(fds):
            self._map(payload[8 + 32 * number :][:32], fd)

    def _set_vring_num(self, payload: bytes, _: list[int]) -> None:
        self._ring(payload).size = struct.unpack_from("<I", payload, 4)[0]

    def _set_vring_base(self, payload: bytes, _: list[int]) -> None:
        self._ring(payload).base = struct.unpack_from("<I", payload, 4)[0]

    def _set_vring_addr(self, payload: bytes, _: list[int]) -> None:
        ring = self._ring(payload)
        ring.desc, ring.used, ring.avail = struct.unpack_from("<QQQ", payload, 8)

    def _get_vring_base(self, payload: bytes, _: list[int]) -> Answer:
        ring = self._ring(payload)
        for head in ring.held:
            self._finish(ring, head)
        ring.held.clear()
        ring.kick = self._swap(ring.kick, [])
        return payload[:4] + struct.pack("<I", ring.base)

    def _swap(self, old: int, fds: list[int]) -> int:
        if old >= 0:
            os.close(old)
        return fds[0] if fds else -1

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> None:
        ring = self._ring(payload)
        ring.kick = self._swap(ring.kick, fds)

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> None:
        ring = self._ring(payload)
        ring.call = self._swap(ring.call, fds)

    def _set_vring_err(self, _: bytes, fds: list[int]) -> None:
        self.errors += fds

    def _set_vring_enable(self, payload: bytes, _: list[int]) -> None:
        ring = self._ring(payload)
        ring.enabled = bool(struct.unpack_from("<I", payload, 4)[0])
        if ring.enabled:
            self._again(ring)

    def _get_inflight_fd(self, payload: bytes, _: list[int]) -> Answer:
        place = Inflight.unpack(payload)
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, 1 << 16)
        return Inflight(1 << 16, 0, place.queues, place.slots).pack(), [fd]

    def _set_inflight_fd(self, _: bytes, fds: list[int]) -> None:
        self.track = mmap.mmap(fds[0], 1 << 16)
        os.close(fds[0])

    def _reset_device(self, _: bytes, __: list[int]) -> None:
        self.accepted = 0

    # -- rings

    def _at(self, address: int, size: int) -> memoryview:
        for (guest, length, _, _), memory in self.regions.items():
            if guest <= address and address + size <= guest + length:
                return memoryview(memory)[address - guest : address - guest + size]
        raise AssertionError(f"{address:#x}+{size:#x} was not shared")

    def _again(self, ring: Ring) -> None:
        """Do what a back end before this one has left in flight, and nothing twice."""
        if self.track is None:
            return
        heads = [head for head in range(ring.size) if self.track[RECORD_HEAD + RECORD * head]]
        used = struct.unpack_from("<H", self._at(ring.used, 4), 2)[0]
        ring.base = used + len(heads) & 0xFFFF
        for head in heads:
            self._finish(ring, head)

    def _serve(self, ring: Ring) -> None:
        available = struct.unpack_from("<H", self._at(ring.avail, 4), 2)[0]
        while ring.base != available:
            head = struct.unpack("<H", self._at(ring.avail + 4 + 2 * (ring.base % ring.size), 2))[0]
            ring.base = ring.base + 1 & 0xFFFF
            if self.track is not None:
                self.track[RECORD_HEAD + RECORD * head] = 1
            if self.holds:
                ring.held.append(head)
            else:
                self._finish(ring, head)

    def _finish(self, ring: Ring, head: int) -> None:
        at, data, written = head, b"", 0
        while True:
            address, length, flags, then = DESCRIPTOR.unpack(self._at(ring.desc + 16 * at, 16))
            if flags & WRITE:
                self._at(address, length)[: len(data)] = data[::-1][:length]
                written = min(length, len(data))
            else:
                data += bytes(self._at(address, length))
            if not flags & NEXT:
                break
            at = then
        words = self._at(ring.used, 4 + 8 * ring.size)
        (used,) = struct.unpack_from("<H", words, 2)
        struct.pack_into("<II", words, 4 + 8 * (used % ring.size), head, written)
        struct.pack_into("<H", words, 2, used + 1 & 0xFFFF)
        if self.track is not None:
            self.track[RECORD_HEAD + RECORD * head] = 0
        if ring.call >= 0:
            os.eventfd_write(ring.call, 1)
