"""What the protocol's tests share: a device with no device in it, and three ways to talk to it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import queue
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from vfio_user import (
    Capabilities,
    Channel,
    Command,
    DeviceFlags,
    FramingError,
    IrqFlags,
    IrqInfo,
    Message,
    MmapArea,
    Reader,
    Region,
    RegionFlags,
    RegionInfo,
    Session,
    SubRegion,
    Version,
    VfioUserError,
    Writer,
)
from vfio_user.message import close_fds

DEADLINE = 30.0
HEADER = struct.Struct("<HHIII")
REPLY, NO_REPLY, ERROR = 0x1, 0x10, 0x20
QEMU_PROPOSAL = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)
"""What QEMU 11.1 sends, byte for byte."""

PLAIN, MAPPED, READ_ONLY, WRITE_ONLY, LARGE, ABSENT = 0, 1, 2, 3, 4, 5
SIZES = {PLAIN: 4096, MAPPED: 16384, READ_ONLY: 256, WRITE_ONLY: 256, LARGE: 2 << 20}
AREAS = (MmapArea(4096, 4096), MmapArea(12288, 4096))
IRQ_COUNTS = (1, 1, 8, 1, 0)


class FakeDevice:
    """A `vfio_user.Backend` that stores what is written, and remembers what it was called for."""

    device_flags = DeviceFlags.RESET | DeviceFlags.PCI

    def __init__(self, *, sealed: bool = False) -> None:
        self.memory = {index: bytearray(size) for index, size in SIZES.items()}
        self.subs: dict[int, list[SubRegion]] = {}
        self.mechanisms: frozenset[str] = frozenset()
        self.calls: list[str] = []
        self.accesses: Counter[tuple[int, int, int, bool]] = Counter()
        self.plain = False  # whether its reads look as if they only looked at memory
        self.refusals: list[VfioUserError] = []
        self.failures: list[BaseException] = []
        self.on_read: Callable[[int, int, int], bytes] = lambda region, at, n: bytes(self.memory[region][at : at + n])
        self.on_write: Callable[[int, int, memoryview], None] = self.store
        self.watched: dict[int, Callable[[], None]] = {}
        self.area = os.memfd_create("area", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.area, SIZES[MAPPED])
        if sealed:
            fcntl.fcntl(self.area, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def close(self) -> None:
        os.close(self.area)

    def store(self, region: int, offset: int, data: memoryview) -> None:
        self.memory[region][offset : offset + len(data)] = data

    def run_watched(self) -> None:
        """One turn of an event loop over the watched descriptors."""
        poll = select.poll()
        for fd in self.watched:
            poll.register(fd, select.POLLIN)
        for callback in [self.watched[fd] for fd, _ in poll.poll(0)]:
            callback()

    # Backend

    def region(self, index: int) -> Region:
        rights = {
            READ_ONLY: RegionFlags.READ,
            WRITE_ONLY: RegionFlags.WRITE,
            MAPPED: RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP,
        }
        size = SIZES.get(index, 0)
        flags = rights.get(index, RegionFlags.READ | RegionFlags.WRITE) if size else RegionFlags(0)
        areas = AREAS if index == MAPPED else ()
        return Region(RegionInfo(index, flags, size, 0, areas), self.area if areas else None)

    def irq(self, index: int) -> IrqInfo:
        return IrqInfo(index, IRQ_COUNTS[index], IrqFlags.EVENTFD)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        return Reader(functools.partial(self.read, index, offset, count), self.plain)

    def read(self, index: int, offset: int, count: int) -> bytes:
        self.calls.append("read")
        return self.on_read(index, offset, count)

    def writer(self, index: int, offset: int, count: int) -> Writer:
        return functools.partial(self.write, index, offset)

    def write(self, index: int, offset: int, data: memoryview) -> None:
        self.calls.append("write")
        self.on_write(index, offset, data)

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None:
        self.accesses[index, offset, count, write] += times

    def sub_regions(self, index: int, mechanisms: frozenset[str]) -> Sequence[SubRegion]:
        self.mechanisms = mechanisms
        return self.subs.get(index, [])

    def reset(self) -> None:
        self.calls.append("reset")

    def before_reply(self) -> None:
        self.calls.append("before_reply")

    def settle(self) -> None:
        self.calls.append("settle")

    def before_unmap(self, request: object) -> None:
        self.calls.append("before_unmap")

    def dma_changed(self, change: object) -> None:
        self.calls.append("dma_changed")

    def irqs_changed(self, index: int) -> None:
        self.calls.append(f"irqs_changed {index}")

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def refused(self, error: VfioUserError) -> None:
        self.refusals.append(error)

    def hook_failed(self, command: Command, error: BaseException) -> None:
        self.failures.append(error)


def fd_count() -> int:
    """How many descriptors are open (and one that this takes to find out)."""
    return len(os.listdir("/proc/self/fd"))


class Answer(NamedTuple):
    """A message as a raw peer received it."""

    id: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]


class Wire:
    """The far end of a socket, spoken to byte by byte. Received fds are closed with it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE)
        self.sock = sock
        self._fds: list[int] = []

    def send(self, command: int, payload: bytes = b"", *, id: int = 1, flags: int = 0, fds: Sequence[int] = ()) -> None:
        self.raw(message(command, payload, id=id, flags=flags), fds)

    def reply(self, to: Answer, payload: bytes = b"", *, error: int = 0, fds: Sequence[int] = ()) -> None:
        flags = REPLY | ERROR if error else REPLY
        self.raw(HEADER.pack(to.id, to.command, 16 + len(payload), flags, error) + payload, fds)

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.send(data)
        self.sock.sendall(data[sent:])

    def receive(self) -> Answer:
        """The next message; a write of nothing, by which servers look at clients, is answered as the text has it."""
        while True:
            found = self.receive_any()
            if found.command != Command.DMA_WRITE or found.flags & REPLY or found.payload[8:] != bytes(8):
                return found
            self.reply(found, found.payload)

    def receive_any(self) -> Answer:
        head, fds, _, _ = socket.recv_fds(self.sock, HEADER.size, 253, socket.MSG_CMSG_CLOEXEC)
        self._fds += fds
        while head and len(head) < HEADER.size:
            head += self.sock.recv(HEADER.size - len(head))
        if not head:
            raise EOFError
        number, command, size, flags, error = HEADER.unpack(head)
        payload = b""
        while len(payload) < size - HEADER.size:
            payload += self.sock.recv(size - HEADER.size - len(payload))
        return Answer(number, command, flags, error, payload, fds)

    @contextlib.contextmanager
    def answering(self, *replies: tuple[bytes, Sequence[int]]) -> Iterator[list[Answer]]:
        """Answer one command after the other with these payloads and fds; the commands, as they came."""
        asked: list[Answer] = []

        def run() -> None:
            for payload, fds in replies:
                asked.append(self.receive())
                self.reply(asked[-1], payload, fds=fds)

        thread = threading.Thread(target=run, name="answering")
        thread.start()
        try:
            yield asked
        finally:
            thread.join()

    @property
    def silent(self) -> bool:
        """Whether nothing can be received now."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.sock.close()


def message(command: int, payload: bytes = b"", *, id: int = 1, flags: int = 0) -> bytes:
    return HEADER.pack(id, command, HEADER.size + len(payload), flags, 0) + payload


def drain(channel: Channel) -> list[tuple[int, bytes, int]]:
    """Everything that has arrived: (id, payload, number of fds)."""
    found = []
    while (received := channel.receive()) is not None:
        found.append((received.id, bytes(received.payload), len(received.fds)))
        close_fds(received.fds)
    return found


def take(channel: Channel) -> Message:
    received = channel.receive()
    assert received is not None
    return received


def same_file(one: int, other: int) -> bool:
    """Whether two eventfds are one: writing this adds to that."""
    os.eventfd_write(one, 1)
    try:
        return os.eventfd_read(other) == 1
    except BlockingIOError:
        os.eventfd_read(one)
        return False


class Link(Wire):
    """A session and its raw client, both driven by the test's own thread: no waiting, no races."""

    def __init__(self, device: FakeDevice, **options: Any) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self.device = device
        self.session = Session(theirs, device, **options)

    def greet(self, json: bytes = QEMU_PROPOSAL, minor: int = 0) -> Answer:
        return self.ask(Command.VERSION, struct.pack("<HH", 0, minor) + json)

    def introduce(self, **capabilities: Any) -> Answer:
        """VERSION with these capabilities."""
        return self.ask(Command.VERSION, Version(0, 2, Capabilities.of(**capabilities)).pack())

    def ask(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = (), flags: int = 0) -> Answer:
        """Send a command, have it served, and receive the answer."""
        self.send(command, payload, flags=flags, fds=fds)
        self.session.service()
        answer = self.receive()
        assert (answer.id, answer.command) == (1, command)
        return answer

    def ok(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """Ask, and expect to be obeyed; the reply's payload."""
        answer = self.ask(command, payload, fds=fds)
        assert (answer.flags, answer.error) == (REPLY, 0), self.device.refusals
        return answer.payload

    def refused(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> int:
        """Ask, and expect an error reply, which is a bare header; its errno."""
        answer = self.ask(command, payload, fds=fds)
        assert (answer.flags, answer.payload, answer.fds) == (REPLY | ERROR, b"", [])
        return answer.error

    def close(self) -> None:
        self.session.close()
        super().close()


class Server:
    """A session on a thread of its own, for clients that block. ``call`` runs a function on that thread."""

    def __init__(self, device: FakeDevice, sock: socket.socket, **options: Any) -> None:
        self.device = device
        self.session = Session(sock, device, **options)
        self.ended: Exception | None = None
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, function))
        os.eventfd_write(self._wake, 1)
        return future

    def join(self) -> VfioUserError | None:
        """Wait until the client has left or was thrown out; why."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if isinstance(self.ended, VfioUserError | None):
            return self.ended
        raise self.ended

    def stop(self) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        try:
            self.join()
        finally:
            os.close(self._wake)

    def _run(self) -> None:
        try:
            while not self._stopping:
                if not self.session.waiting:
                    self._sleep()
                self.session.service()
                self.device.run_watched()
                while not self._tasks.empty():
                    self._run_task()
        except Exception as error:  # noqa: BLE001 it is told to whoever stops the server
            self.ended = error
        finally:
            self.session.close()

    def _sleep(self) -> None:
        poll = select.poll()
        for fd in (self.session.fileno(), self._wake, *self.device.watched):
            poll.register(fd, select.POLLIN)
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _run_task(self) -> None:
        future, function = self._tasks.get()
        try:
            future.set_result(function())
        except FramingError:
            raise
        except Exception as error:  # noqa: BLE001 it is the test's to look at
            future.set_exception(error)


@contextlib.contextmanager
def served(device: FakeDevice, **options: Any) -> Iterator[tuple[Server, socket.socket]]:
    """``device`` on a thread, and the client's end of its socket."""
    ours, theirs = socket.socketpair()
    with ours:
        server = Server(device, theirs, **options)
        try:
            yield server, ours
        finally:
            server.stop()


class FakeMovable:
    """A `vfio_user.Movable` whose state is a few bytes. What a test puts into ``fails`` is raised, once."""

    most = 1000

    def __init__(self, state: bytes = b"state", *, pre_copy: bool = True) -> None:
        self.pre_copy = pre_copy
        self.state = state
        self.loaded: bytes | None = None
        self.still = False
        self.files_elsewhere = False
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails.pop(name)

    def awaits(self) -> bool:
        return self.files_elsewhere

    def hold(self) -> None:
        self._called("hold")
        self.still = True

    def go(self) -> None:
        self._called("go")
        self.still = False
        if self.loaded is not None:
            self.state, self.loaded = self.loaded, None

    def reset(self) -> None:
        self._called("reset")
        self.still, self.loaded = False, None

    def save(self, *, last: bool) -> bytes:
        self._called("save last" if last else "save")
        return b"end of " + self.state if last else b"first of " + self.state

    def forget(self) -> None:
        self._called("forget")

    def load(self, data: bytes) -> None:
        self._called("load")
        if not data.startswith(b"end of "):
            raise VfioUserError("this is no state")
        self.loaded = data[len(b"end of ") :]

    def inherit(self, *, loaded: bool) -> None:
        self._called(f"inherit {loaded}")
        self.still = True
