"""The agent on this machine instead of in a guest: it is at the other end of a socket."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

from bellwired.guest.channel import Channel, Running
from bellwired.guest.errors import MachineError

PATIENCE = 20.0
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


class Heard:
    """What a command writes."""

    def __init__(self) -> None:
        self.data = b""
        self._changed = threading.Condition()

    def take(self, data: bytes) -> None:
        with self._changed:
            self.data += data
            self._changed.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.data, PATIENCE), self.data


class Agent:
    """The agent's process, and the channel to it."""

    def __init__(self, program: Path) -> None:
        ours, theirs = socket.socketpair()
        words = [str(program), "serve", str(theirs.fileno())]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.channel = Channel(ours, lambda why: MachineError(why or "gone"))
        assert self.channel.wait_until_ready(PATIENCE)

    def begin(self, *words: str, **options: object) -> tuple[Running, Heard, Heard]:
        output, errors = Heard(), Heard()
        given = {"environment": ENVIRONMENT, **options}
        return self.channel.start(words, output.take, errors.take, **given), output, errors  # type: ignore[arg-type]

    def run(self, *words: str, **options: object) -> tuple[int | None, bytes, bytes]:
        running, output, errors = self.begin(*words, **options)
        running.end_input()
        return running.wait(PATIENCE), output.data, errors.data

    def close(self) -> None:
        self.channel.close()
        assert self.process.wait(PATIENCE) == 0
