"""A server that says what a test has it say about its file descriptors, and otherwise what a client has to believe.

Written with plain sockets: our own server refuses to send such things.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bellwired.guest.plan import Plugged
from vfio_user import Command

HEADER = struct.Struct("<HHIII")
REPLY, ERROR, NO_REPLY = 0x1, 0x21, 0x10
MEMORY_BAR, PORT_BAR, CONFIG = 0, 2, 7
SIZES = {MEMORY_BAR: 4096, PORT_BAR: 16, CONFIG: 256}
ENTRY = struct.Struct("<QQIIIIQ")  # offset, size, fd_index, type, flags, padding, datamatch (40 bytes, as ratified)
LONG_ENTRY = struct.Struct("<QQIIIIQQ")  # with a descriptor and an offset of shadow memory (48, as libvfio-user has it)
ENOSYS = 38

Reply = tuple[bytes, Sequence[int]] | None


@dataclass(frozen=True)
class Entry:
    """An entry of the reply; what is not given is as a careful server has it."""

    offset: int = 0
    size: int = 0
    fd_index: int = 0
    kind: int = 0
    flags: int = 0
    datamatch: int = 0
    memory: int | None = None
    """The index of the shadow memory's descriptor, in an entry of 48 bytes."""
    place: int = 0

    def pack(self) -> bytes:
        """As it goes over the wire."""
        if self.memory is not None:
            head = self.offset, self.size, self.fd_index, self.kind, self.flags
            return LONG_ENTRY.pack(*head, self.memory, self.place, self.datamatch)
        return ENTRY.pack(self.offset, self.size, self.fd_index, self.kind, self.flags, 0, self.datamatch)


def entries(
    *what: Entry, fds: Sequence[int], count: int | None = None, index: int = MEMORY_BAR
) -> Callable[..., Reply]:
    """Answers the question for one region with these entries, and says of the others that they have none."""

    def answer(argsz: int, region: int) -> Reply:
        if region != index:
            return struct.pack("<IIII", 16, 0, region, 0), ()
        array = b"".join(entry.pack() for entry in what)
        head = struct.pack("<IIII", 16 + len(array), 0, region, len(what) if count is None else count)
        return (head, ()) if argsz < 16 + len(array) else (head + array, fds)

    return answer


@dataclass
class Crafted:
    """A device with a memory BAR and a port BAR; it counts the accesses that come by message."""

    path: Path
    answer: Callable[[int, int], Reply]
    """What GET_REGION_IO_FDS gives for argsz and region: payload and descriptors; None ends the connection."""
    knows: bool = True
    leaves_at: Command | None = None
    """The command that ends the connection, and of whose message only the header is read."""
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Region, offset and bytes of each REGION_WRITE to a BAR."""
    asked: list[int] = field(default_factory=list)
    """The argsz of each GET_REGION_IO_FDS."""

    @property
    def argument(self) -> str:
        """QEMU's ``-device`` for it."""
        return Plugged(self.path).argument

    def serve(self, connection: socket.socket) -> None:
        """Answer until the client has gone."""
        config = bytearray(SIZES[CONFIG])
        struct.pack_into("<HHHHII", config, 0, 0x1234, 0x0001, 0, 0, 0x0880_0000, 0)
        config[0x10 + 4 * PORT_BAR] = 1
        with contextlib.suppress(OSError):
            while head := connection.recv(HEADER.size, socket.MSG_WAITALL):
                number, command, size, flags, _ = HEADER.unpack(head)
                if command == self.leaves_at:
                    return
                body = connection.recv(size - HEADER.size, socket.MSG_WAITALL) if size > HEADER.size else b""
                reply = self._answer(command, body, config)
                if reply is None:
                    return
                payload, fds = reply
                error = 0 if self.knows or command != Command.DEVICE_GET_REGION_IO_FDS else ENOSYS
                out = (
                    HEADER.pack(number, command, HEADER.size + len(payload), ERROR if error else REPLY, error) + payload
                )
                if not flags & NO_REPLY:
                    socket.send_fds(connection, [out], list(fds))

    def _answer(self, command: int, body: bytes, config: bytearray) -> Reply:
        match command:
            case Command.VERSION:
                return struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":16}}\0', ()
            case Command.DEVICE_GET_INFO:
                return struct.pack("<IIII", 16, 0x3, 9, 5), ()
            case Command.DEVICE_GET_REGION_INFO:
                index = struct.unpack_from("<I", body, 8)[0]
                return struct.pack("<IIIIQQ", 32, 0x3 if index in SIZES else 0, index, 0, SIZES.get(index, 0), 0), ()
            case Command.DEVICE_GET_REGION_IO_FDS:
                argsz, _, index, _ = struct.unpack("<IIII", body)
                self.asked.append(argsz)
                return self.answer(argsz, index) if self.knows else (b"", ())
            case Command.DEVICE_GET_IRQ_INFO:
                return struct.pack("<IIII", 16, 0, struct.unpack_from("<I", body, 8)[0], 0), ()
            case Command.REGION_READ:
                offset, region, count = struct.unpack("<QII", body)
                data = bytes(config[offset : offset + count]) if region == CONFIG else bytes(count)
                return body + data, ()
            case Command.REGION_WRITE:
                offset, region, count = struct.unpack_from("<QII", body)
                if region == CONFIG:
                    config[offset : offset + count] = body[16 : 16 + count]
                else:
                    self.writes.append((region, offset, body[16:]))
                return body[:16], ()
        return b"", ()


@contextlib.contextmanager
def crafted(
    folder: Path, answer: Callable[[int, int], Reply], *, knows: bool = True, leaves_at: Command | None = None
) -> Iterator[Crafted]:
    """Serve it at a socket in ``folder`` until the block ends; one client."""
    server = Crafted(folder / "crafted", answer, knows, leaves_at)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(server.path))
        listener.listen()

        connections: list[socket.socket] = []

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connections.append(connection)
                server.serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            for each in (listener, *connections):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()
