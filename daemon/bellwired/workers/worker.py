"""A worker as the manager runs it: one device, its listener, and a control socket on the device's own loop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwire import BellwireError, OptionError, PciDevice
from bellwire.serve.blame import DeviceFailed, told
from bellwire.serve.loop import Loop
from bellwire.serve.observer import Observer
from bellwire.serve.worker import Worker
from bellwired import messages, sources
from bellwired.box import enter
from bellwired.errors import CommandError
from bellwired.find import find_trusted
from bellwired.logs import DATE, to_stderr_or_journal
from bellwired.unblocked import Flood
from bellwired.workers import process, wire
from bellwired.workers.boxed import BoxError, enter_box
from bellwired.workers.breakpoints import refuse_breakpoints
from bellwired.workers.captures import Captures
from bellwired.workers.pokes import Pokes
from bellwired.workers.printed import Printed
from bellwired.workers.registers import maps, registers
from bellwired.workers.wire import Answer, Ask, Report, Spawn, WireError
from vfio_user import SERVER, Capabilities

REFUSED = 78  # EX_CONFIG: no restart will help
CRASHED = 1
AGAIN = 0.02  # seconds until an unsent message is sent again
FLOOD = 500  # log lines of a device in a second
MOST_LINES = 100  # log lines that are sent to the manager in a second
LONGEST_LINE = 8192  # characters of a record, with its traceback, that are sent to the manager
MAPPED = 0.1  # seconds: closer changes of the client's memory maps are reported together

log = logging.getLogger("bellwire.worker")


def run_device(spawn: Spawn, parent: int, *fds: int) -> int:
    """The life of a worker, from just after the fork from ``parent``; its exit status.

    It ends without the interpreter's cleanup, which would touch, and so copy, memory that all workers share.
    """
    process.name(f"bw:{spawn.name}")
    to_stderr_or_journal(spawn.log_level, device=spawn.name, clock=DATE)
    log.setLevel(logging.WARNING)  # the manager logs clients that come and go
    for handler in logging.getLogger().handlers:
        handler.addFilter(mark_trouble)
        handler.addFilter(Flood(FLOOD))
    refuse_breakpoints(
        f"a worker has no terminal: stop {spawn.name}, and serve its file in one, with bellwire run --debug"
    )
    *listeners, control = fds
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(socket.socket(fileno=control))
        channel.setblocking(False)
        if not spawn.trial:
            logging.getLogger().addHandler(Relay(channel))
        sys.stdout = sys.stderr = Printed(logging.getLogger("bellwire.printed"))
        sockets = [stack.enter_context(socket.socket(fileno=fd)) for fd in listeners]
        status = _live(spawn, parent, channel, sockets)
    sys.stdout.close()
    logging.shutdown()
    os._exit(status)


def _live(spawn: Spawn, parent: int, channel: socket.socket, listeners: list[socket.socket]) -> int:
    try:
        os.chdir(spawn.folder)  # relative paths start there
        enter_box(spawn, parent, channel)
    except OSError as error:
        return _failed(channel, BoxError(f"it cannot be run in its box: {error}"))
    try:
        try:
            kind = find_trusted(spawn.device, [Path(folder) for folder in spawn.plugins])
        finally:
            _say(channel, Report("made", {"files": sources.loaded()}))
        with told(f"{kind.__name__}.__init__"):
            device = kind(**spawn.options)
    except DeviceFailed as error:
        return _failed(channel, error)
    except BellwireError as error:
        return _refused(channel, error)
    except Exception as error:  # noqa: BLE001 the boundary to device code, as below
        return _crashed(channel, error)
    if spawn.trial:
        return 0
    try:
        serving = Serving(
            device,
            channel,
            listener=listeners[0],
            io_fd_entry=spawn.io_fd_entry,
            busy_poll=spawn.busy_poll,
            max_maps=spawn.max_maps,
            hello_timeout=spawn.hello_timeout,
            name=spawn.name,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: serving.stop())
        serving.run()
    except OptionError as error:
        return _refused(channel, error)
    except BellwireError as error:  # it cannot be set up, as its options have it
        return _failed(channel, error)
    except Exception as error:  # noqa: BLE001
        return _crashed(channel, error)
    return 0


def _refused(channel: socket.socket, error: BellwireError) -> int:
    hint = getattr(error, "hint", "")
    _say(channel, Report("refused", {"error": f"{error}; {hint}" if hint else str(error)}))
    return REFUSED


def _failed(channel: socket.socket, error: BellwireError) -> int:
    hint = enter.why_refused(error)
    text = f"{error}; {hint}" if hint else str(error)
    log.error("%s", text)
    _say(channel, Report("crashed", {"error": text}))
    return CRASHED


def _crashed(channel: socket.socket, error: Exception) -> int:
    log.critical("the device's worker ends", exc_info=error)
    hint = enter.why_refused(error)
    text = f"{type(error).__name__}: {error}"
    _say(channel, Report("crashed", {"error": f"{text}; {hint}" if hint else text}))
    return CRASHED


def mark_trouble(record: logging.LogRecord) -> bool:
    """A filter that adds a MESSAGE_ID to a device's warnings and errors."""
    if record.name.startswith("bellwire.device") and record.levelno >= logging.WARNING:
        record.MESSAGE_ID = messages.TROUBLE
    return True


class Serving:
    """Runs a device, and answers the manager's questions about it."""

    def __init__(
        self,
        device: PciDevice,
        channel: socket.socket,
        *,
        listener: socket.socket | None = None,
        connection: socket.socket | None = None,
        io_fd_entry: int = 40,
        busy_poll: int = 0,
        max_maps: int = SERVER.max_dma_maps,
        hello_timeout: float = 0.0,
        reporter: Reporter | None = None,
        managed: bool = True,
        name: str = "",
    ) -> None:
        """``name`` is what captures call it. ``managed``: it ends when the far end of ``channel`` has gone.

        ``busy_poll`` is in microseconds.
        """
        self._channel = channel
        self._managed = managed
        reporter = reporter or Reporter()
        self._worker = Worker(
            device,
            listener,
            connection=connection,
            observer=reporter,
            io_fd_entry_size=io_fd_entry,
            busy_poll=busy_poll / 1e6,
            max_maps=max_maps,
            hello_timeout=hello_timeout,
        )
        reporter.outbox = self._outbox = Outbox(channel, self._worker.loop)
        self._device = device
        self.captures = Captures(self._worker.served, name or device.name)
        """The captures that run."""
        self._given = dict(device.core.options)
        pokes = Pokes(device)
        self._answers: dict[str, Callable[..., Any]] = {
            "ping": lambda: None,
            "reset": self._worker.served.reset,
            "disconnect": self._disconnect,
            "set": self._set,
            "registers": lambda: registers(device),
            "maps": lambda: maps(self._worker.served.session),
            "poke": pokes.poke,
            "interrupt": pokes.interrupt,
            "statistics": self._worker.served.statistics,
            "measures": self._worker.served.measures,
            "stop": self._worker.stop,
            "capture": self.captures.start,
            "captured": self.captures.figures,
            "capture-end": self.captures.end,
            "capture-stop": self.captures.stop,
        }

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until :meth:`stop`, or until the manager has gone. Calls ``ready`` once clients are accepted."""

        def accepting() -> None:
            self._outbox.tell("ready")
            ready()

        self._worker.loop.watch(self._channel.fileno(), self._asked)
        try:
            self._worker.run(accepting)
        finally:
            self.captures.close()

    def stop(self) -> None:
        """End :meth:`run`, from any thread or signal handler."""
        self._worker.stop()

    def _disconnect(self) -> None:
        if not self._worker.disconnect():
            raise CommandError("no client is connected")

    def _set(self, option: str, value: str) -> dict[str, str]:
        """The options whose values have changed since the start."""
        self._device.change(option, value)
        declared, given = self._device.layout.options, self._given
        now = self._device.core.options.items()
        return {key: declared[key].text(value) for key, value in now if value != given.get(key, declared[key].default)}

    def _asked(self) -> None:
        try:
            received = wire.receive(self._channel)
        except BlockingIOError:
            return
        except WireError as error:
            log.error("the manager talks nonsense: %s", error)
            return
        if received is None:
            self._worker.loop.unwatch(self._channel.fileno())
            if self._managed:
                self._worker.stop()
            return
        ask, fds = received
        if not isinstance(ask, Ask):
            wire.close(fds)
            return
        arguments: dict[str, Any] = dict(ask.arguments)
        if ask.what == "capture":
            arguments["fds"] = fds
        else:
            wire.close(fds)
        answer = Answer(ask.number)
        do = self._answers.get(ask.what)
        try:
            if do is None:
                answer.error = f"a worker knows no {ask.what!r}"
            else:
                answer.value = do(**arguments)
        except BellwireError as error:
            answer.error = str(error)
        except Exception as error:
            log.exception("%s failed", ask.what)
            answer.error = f"{type(error).__name__}: {error}"
        self._outbox.answer(answer)


class Outbox:
    """Sends to the manager without waiting for it.

    If the socket is full, an answer waits. Events are lost meanwhile, and the next event says how many.
    """

    def __init__(self, channel: socket.socket, loop: Loop) -> None:
        self._channel = channel
        self._loop = loop
        self._waiting: deque[Answer] = deque()
        self._lost = 0

    def tell(self, kind: str, **fields: Any) -> None:
        """Send an event. It is lost if the socket is full."""
        if self._waiting or (self._lost and not _say(self._channel, Report("lost", {"count": self._lost}))):
            self._lost += 1
            return
        self._lost = 0
        if not _say(self._channel, Report(kind, fields)):
            self._lost = 1

    def answer(self, answer: Answer) -> None:
        """Send an answer. It waits if the socket is full."""
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting:
            if not _say(self._channel, self._waiting[0]):
                self._loop.after(AGAIN, self._go_on)
                return
            self._waiting.popleft()

    def soon(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back later, on the same thread."""
        self._loop.after(delay, callback)


class Relay(logging.Handler):
    """Sends log records to the manager, from any thread.

    What finds no room is in the log alone, and so are more than ``MOST_LINES`` a second: a device that logs all the
    time keeps only its own worker busy. The next line that is sent says how many were left out.
    """

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel
        self._second = 0
        self._passed = self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, with its traceback."""
        if int(record.created) != self._second:
            self._second, self._passed = int(record.created), 0
        if self._passed >= MOST_LINES:
            self._lost += 1
            return
        self._passed += 1
        try:
            text = self.format(record)[:LONGEST_LINE]
        except Exception:  # noqa: BLE001 a mistake in the call: the log says so
            return
        if self._lost:
            text = f"({self._lost} lines before this one were too many) {text}"
        fields = {"time": record.created, "level": record.levelname.lower(), "text": text}
        with contextlib.suppress(OSError):  # the worker is about to end
            self._lost = 0 if _say(self._channel, Report("log", fields)) else self._lost + 1


class Reporter(Observer):
    """Sends the device's events to the manager."""

    outbox: Outbox

    def __init__(self) -> None:
        self._maps: tuple[int, int] | None = None

    def connected(self, pid: int, uid: int) -> None:
        """A client has come."""
        self.outbox.tell("connected", pid=pid, uid=uid)

    def introduced(self, client: Capabilities) -> None:
        """The client has said what it supports."""
        self.outbox.tell("introduced", **client.to_json())

    def mapped(self, maps: int, size: int) -> None:
        """The client has changed its memory maps. Frequent changes are reported together, to spare the manager."""
        if self._maps is None:
            self.outbox.soon(MAPPED, self._tell_maps)
        self._maps = maps, size

    def left(self, reason: str) -> None:
        """The client has disconnected."""
        self._maps = None
        self.outbox.tell("left", reason=reason)

    def trouble(self, text: str) -> None:
        """A warning or an error was logged."""
        self.outbox.tell("trouble", text=text)

    def _tell_maps(self) -> None:
        if self._maps is not None:
            maps, size = self._maps
            self._maps = None
            self.outbox.tell("mapped", maps=maps, bytes=size)


def _say(channel: socket.socket, message: Answer | Report) -> bool:
    """Send a message. False if the socket is full. A manager that has gone is no error here: :meth:`run` handles it."""
    try:
        wire.send(channel, message)
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionError):
        pass
    return True
