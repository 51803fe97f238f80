"""A tap on the wire: it stands between a client and a server, passes every message on, and remembers the last ones."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from vfio_user import Channel, Command, MessageFlags, VfioUserError
from vfio_user.hang_up import hang_up
from vfio_user.message import Message, close_fds, command_name

REMEMBERED = 4000  # messages
SHOWN = 80
BYTES = 48  # of a payload
LARGEST = 1 << 20
LONGEST_VERSION = 214 - 16  # QEMU's own
_ACCESS = struct.Struct("<QII")
_ACCESSES = {Command.REGION_READ, Command.REGION_WRITE}
_WITH_ARGSZ = {Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_REGION_IO_FDS}
_REPLIES: dict[int, int] = {
    Command.VERSION: LONGEST_VERSION,
    Command.DMA_UNMAP: 24,
    Command.DEVICE_GET_INFO: 16,
    Command.DEVICE_GET_IRQ_INFO: 16,
    Command.REGION_WRITE: 16,
    Command.REGION_WRITE_MULTI: 8,
}


class Seen(NamedTuple):
    """A message that went by."""

    when: float
    to_server: bool
    number: int
    command: int
    flags: int
    error: int
    size: int
    start: bytes
    fds: int

    @property
    def is_reply(self) -> bool:
        """Whether it answers another."""
        return self.flags & 0xF == MessageFlags.REPLY

    @property
    def posted(self) -> bool:
        """Whether nobody waits for an answer."""
        return bool(self.flags & MessageFlags.NO_REPLY)

    def __str__(self) -> str:
        """Direction, number, command, and what is in it."""
        arrow = "->" if self.to_server else "<-"
        marks = " reply" if self.is_reply else " posted" if self.posted else ""
        marks += f" ERROR {self.error} ({os.strerror(self.error)})" if self.flags & MessageFlags.ERROR else ""
        marks += f" +{self.fds} fds" if self.fds else ""
        return f"{self.when:8.3f} {arrow} {self.number:5} {command_name(self.command)}{marks} {self._body()}"

    def _body(self) -> str:
        if self.command == Command.VERSION:
            return self.start[4:].decode(errors="replace")
        if self.command in _ACCESSES and len(self.start) >= _ACCESS.size:
            offset, region, count = _ACCESS.unpack_from(self.start)
            data = self.start[_ACCESS.size : _ACCESS.size + count]
            value = (
                f" {int.from_bytes(data, 'little'):#x}" if 0 < len(data) <= 8 else f" {data.hex(' ')}" if data else ""
            )
            return f"region {region} offset {offset:#x} count {count}{value}"
        return self.start.hex(" ", 4) + ("..." if self.size > len(self.start) else "")


class Tap:
    """Listens at ``path`` for one client at a time, and takes each to the server at ``server``."""

    def __init__(self, path: Path, server: Path) -> None:
        self.path = path
        self._server = server
        self._seen: deque[Seen] = deque(maxlen=REMEMBERED)
        self.overlong: list[Seen] = []
        """Replies longer than was asked for, and errors with a payload: QEMU gives a server up for them."""
        self._room: dict[int, int] = {}  # that a command leaves for its reply, by the command's number
        self._news = threading.Lock()
        self._start = time.monotonic()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="tap")
        self._thread.start()

    def messages(self) -> list[Seen]:
        """What went by, up to now."""
        with self._news:
            return list(self._seen)

    def commands(self) -> list[int]:
        """The commands among it, in order, replies left out."""
        return [seen.command for seen in self.messages() if not seen.is_reply]

    def trace(self, last: int = SHOWN) -> str:
        """The last messages, for people."""
        seen = self.messages()
        left_out = [f"... {len(seen) - last} before"] if len(seen) > last else []
        return "\n".join([*left_out, *map(str, seen[-last:])])

    def close(self) -> None:
        """Cut the connection and end the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._listener.close()
        os.close(self._stop)
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        while self._ready(self._listener.fileno()):
            ours, _ = self._listener.accept()
            theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client = Channel(ours, LARGEST)
            server = Channel(theirs, LARGEST)
            with contextlib.closing(client), contextlib.closing(server):
                with contextlib.suppress(VfioUserError, OSError):
                    theirs.connect(os.fspath(self._server))
                    theirs.setblocking(False)
                    self._pass_on(client, server)
                hang_up(client.fileno())

    def _pass_on(self, client: Channel, server: Channel) -> None:
        ways = {client.fileno(): (client, server, True), server.fileno(): (server, client, False)}
        while ready := set(self._ready(*ways)):
            while ready:
                source, target, to_server = ways[ready.pop()]
                while (message := source.receive()) is not None:
                    self._note(message, to_server)
                    target.send(
                        message.id, message.command, message.flags, message.error, [message.payload], message.fds
                    )
                    close_fds(message.fds)
                # What came from the target while it would not take more lies in its channel: no socket shows it.
                ready |= {fd for fd, (channel, _, _) in ways.items() if channel.ready}

    def _note(self, message: Message, to_server: bool) -> None:
        most = 1024 if message.command == Command.VERSION else BYTES
        when = time.monotonic() - self._start
        start = bytes(message.payload[:most])
        number, command, flags, error, payload, fds = message
        seen = Seen(when, to_server, number, command, flags, error, len(payload), start, len(fds))
        with self._news:
            self._seen.append(seen)
        if to_server and not seen.is_reply:
            self._room[number] = _room(seen)
        elif not to_server and seen.is_reply:
            room = self._room.pop(number, 0)
            if seen.size > (0 if flags & MessageFlags.ERROR else room):
                self.overlong.append(seen)

    def _ready(self, *fds: int) -> list[int]:
        """Those that can be read, waited for; none when it is time to end."""
        readable, _, _ = select.select([self._stop, *fds], [], [])
        return [] if self._stop in readable else readable


def _room(command: Seen) -> int:
    """The most bytes of payload that a reply may have."""
    if command.command == Command.REGION_READ:
        return _ACCESS.size + int(_ACCESS.unpack_from(command.start)[2])
    if command.command in _WITH_ARGSZ:
        return int.from_bytes(command.start[:4], "little")
    return _REPLIES.get(command.command, 0)
