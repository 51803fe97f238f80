"""The host's end of the channel to a guest: it starts commands there, feeds them, and collects what they write.

A thread reads what the agent sends. Any number of threads may run commands at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from bellwired.guest import frames
from bellwired.guest.errors import ChannelError, MachineError
from bellwired.guest.frames import MOST_COMMANDS, SIZE, WINDOW, Decoder, Frame, Kind

Sink = Callable[[bytes], object]
"""Takes what a command has written, on the thread that reads the channel."""
PIECE = 1 << 16


class Running:
    """A command in the guest. Its methods raise a MachineError if the guest has gone."""

    def __init__(self, channel: Channel, number: int, output: Sink, errors: Sink) -> None:
        self.status: int | None = None
        """Its exit status, or the number of the signal that ended it, negated. None while it runs."""
        self.number = number
        self.output = output
        self.errors = errors
        self.allowed = WINDOW
        self._channel = channel

    def feed(self, data: bytes, timeout: float | None = None) -> bool:
        """Write to its standard input, as fast as it reads. False if it has not read all in time.

        Input that a command has left when it ended is dropped, as a pipe would do it.
        """
        deadline = _deadline(timeout)
        at = 0
        while at < len(data):
            if not self._channel.wait_for(lambda: self.allowed > 0 or self.status is not None, deadline):
                return False
            if self.status is not None:
                return True
            piece = data[at : at + min(self.allowed, frames.MOST)]
            self.allowed -= len(piece)
            at += len(piece)
            self._channel.send(Kind.INPUT, self.number, piece)
        return True

    def end_input(self) -> None:
        """Close its standard input."""
        if self.status is None:
            self._channel.send(Kind.INPUT, self.number)

    def signal(self, number: int) -> None:
        """Send a signal to the command and its children."""
        if self.status is None:
            self._channel.send(Kind.SIGNAL, self.number, bytes([number]))

    def resize(self, rows: int, columns: int) -> None:
        """Tell it that its terminal has another size."""
        if self.status is None:
            self._channel.send(Kind.RESIZE, self.number, SIZE.pack(rows & 0xFFFF, columns & 0xFFFF))

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end. Its :attr:`status`, or None if it has not ended in time."""
        self._channel.wait_for(lambda: self.status is not None, _deadline(timeout))
        return self.status

    def kill(self) -> None:
        """Kill it. What it still writes is dropped."""
        self.output = self.errors = _drop
        self.signal(signal.SIGKILL)


class Channel:
    """The connection to the agent at the other end of ``sock``, which the channel owns.

    ``lost`` is called once, on the reading thread, when the connection has ended; it returns the error for callers.
    """

    def __init__(self, sock: socket.socket, lost: Callable[[str], MachineError]) -> None:
        self.ready = False
        self._sock = sock
        self._lost = lost
        self._error: MachineError | None = None
        self._running: dict[int, Running] = {}
        self._numbers = itertools.cycle(range(1, 1 << 16))
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="guest-channel", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait until the agent takes commands. False if it does not in time."""
        return self.wait_for(lambda: self.ready, _deadline(timeout))

    def expect_another(self) -> None:
        """The guest starts again: until its new agent says hello, the channel is not ready.

        The last command is the one that has it start again. It never ends, and no other one may run.
        """
        self.ready = False

    def start(
        self,
        words: Sequence[str],
        output: Sink,
        errors: Sink,
        *,
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
        own_program: bool = False,
    ) -> Running:
        """Start a command. See :func:`bellwired.guest.frames.start` for the rest."""
        payload = frames.start(words, folder=folder, environment=environment, size=size, own_program=own_program)
        return self._begin(Kind.START, payload, output, errors)

    def ask(self, kind: Kind, payload: bytes = b"") -> Running:
        """Send SWITCH or SYNC. The answer is awaited as the end of a command is."""
        return self._begin(kind, payload, _drop, _drop)

    def _begin(self, kind: Kind, payload: bytes, output: Sink, errors: Sink) -> Running:
        with self._changed:
            if len(self._running) >= MOST_COMMANDS:
                raise MachineError(f"the guest runs {MOST_COMMANDS} commands, and that is the most at a time")
            number = next(each for each in self._numbers if each not in self._running)
            running = self._running[number] = Running(self, number, output, errors)
        self.send(kind, number, payload)
        return running

    def send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        """Send a frame. Raises a MachineError if the guest has gone."""
        self._check()
        try:
            with self._sending:
                self._sock.sendall(frames.encode(kind, number, payload))
        except OSError:
            self._thread.join()  # it is told why
            self._check()

    def wait_for(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until ``condition`` holds. False if the deadline passes; a MachineError if the guest has gone."""
        with self._changed:
            while not condition():
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def fail(self, error: MachineError) -> None:
        """Raise ``error`` in all who wait for the guest, and in all later calls."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """Hang up: the agent ends its commands, and powers the guest off."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        decoder = Decoder()
        why = ""
        try:
            while data := self._sock.recv(PIECE):
                for frame in decoder.feed(data):
                    self._handle(frame)
        except ChannelError as error:
            why = f"the guest's agent sent {error}"
        except ConnectionResetError:
            pass  # QEMU has ended before it read all
        except OSError as error:
            why = f"the channel to the guest failed: {error.strerror}"
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        lost = self._lost(why)
        with self._changed:
            self._error = self._error or lost
            self._changed.notify_all()

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            with self._changed:
                self.ready = True
                self._running.clear()
                self._changed.notify_all()
            return
        running = self._running.get(frame.command)
        if running is None:
            raise ChannelError(f"a frame {frame.kind.name} for command {frame.command}, which does not run")
        if frame.kind is Kind.OUTPUT:
            running.output(frame.payload)
        elif frame.kind is Kind.ERRORS:
            running.errors(frame.payload)
        else:
            self._change(running, frame)

    def _change(self, running: Running, frame: Frame) -> None:
        with self._changed:
            if frame.kind is Kind.TAKEN:
                running.allowed += frame.number
                if running.allowed > WINDOW:
                    raise ChannelError(f"a frame TAKEN of {frame.number} bytes: fewer were sent")
            else:
                del self._running[running.number]
                running.status = frame.status
            self._changed.notify_all()


def _drop(_: bytes) -> None:
    pass


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
