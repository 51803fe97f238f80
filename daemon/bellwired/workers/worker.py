"""A worker as the manager runs it: one device, its listener, and a control socket on the device's own loop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bellwire import BellwireError, OptionError, PciDevice
from bellwire.capture.capture import Capture
from bellwire.capture.timeline import Timeline
from bellwire.filters import Filter
from bellwire.serve.blame import DeviceFailed, told
from bellwire.serve.worker import Worker
from bellwired import messages, sources
from bellwired.box import enter
from bellwired.errors import CommandError
from bellwired.filtering import Switches
from bellwired.find import find_trusted
from bellwired.logs import DATE, to_stderr_or_journal
from bellwired.unblocked import Flood
from bellwired.workers import process, wire
from bellwired.workers.boxed import BoxError, enter_box
from bellwired.workers.breakpoints import refuse_breakpoints
from bellwired.workers.captures import WHOLE, Captures
from bellwired.workers.code import Code
from bellwired.workers.ledger import ManagersLedger
from bellwired.workers.made import made
from bellwired.workers.outbox import Outbox
from bellwired.workers.pokes import Pokes
from bellwired.workers.printed import Printed
from bellwired.workers.registers import maps, registers
from bellwired.workers.relay import Relay, say
from bellwired.workers.reporter import Reporter
from bellwired.workers.tracing import Lent, Tracing
from bellwired.workers.wire import MOVED, REFUSED, Answer, Ask, Report, Spawn, WireError
from vfio_user import RATIFIED, SERVER, Dialect, Estate, Ledger, dialect

CRASHED = 1
RUN_CODE = frozenset(("set", "poke", "interrupt"))  # not while the device stands still
FLOOD = 500  # log lines of a device in a second

Again = Callable[[Mapping[str, int]], PciDevice]
"""Makes a device from its files as they are now. Some are given open, by their paths: its box may not open them."""

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
    process.end(status)


def _live(spawn: Spawn, parent: int, channel: socket.socket, listeners: list[socket.socket]) -> int:
    try:
        os.chdir(spawn.folder)  # relative paths start there
        enter_box(spawn, parent, channel)
    except OSError as error:
        return _failed(channel, BoxError(f"it cannot be run in its box: {error}"))
    try:
        device, filters, estate = made(spawn, channel)
    except DeviceFailed as error:
        return _failed(channel, error)
    except BellwireError as error:
        return _refused(channel, error)
    except Exception as error:  # noqa: BLE001 the boundary to device code, as below
        return _crashed(channel, error)
    if spawn.trial:
        return 0

    def again(given: Mapping[str, int]) -> PciDevice:
        def opened(path: Path) -> int:
            return os.dup(given[str(path)]) if str(path) in given else sources.open_trusted(path)

        kind = find_trusted(spawn.device, [Path(folder) for folder in spawn.plugins], opened)
        with told(f"{kind.__name__}.__init__"):
            return kind(**spawn.options)

    try:
        serving = Serving(
            device,
            channel,
            again=again if sources.loaded() else None,
            ledger=ManagersLedger(channel),
            estate=estate,
            listener=listeners[0],
            dialect=dialect(spawn.dialect, spawn.io_fd_entry),
            busy_poll=spawn.busy_poll,
            max_maps=spawn.max_maps,
            hello_timeout=spawn.hello_timeout,
            filters=filters,
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
    say(channel, Report("over", {}))
    return MOVED if serving.left else 0


def _refused(channel: socket.socket, error: BellwireError) -> int:
    hint = getattr(error, "hint", "")
    say(channel, Report("refused", {"error": f"{error}; {hint}" if hint else str(error)}))
    return REFUSED


def _failed(channel: socket.socket, error: BellwireError) -> int:
    hint = enter.why_refused(error)
    text = f"{error}; {hint}" if hint else str(error)
    log.error("%s", text)
    say(channel, Report("crashed", {"error": text}))
    return CRASHED


def _crashed(channel: socket.socket, error: Exception) -> int:
    log.critical("the device's worker ends", exc_info=error)
    hint = enter.why_refused(error)
    text = f"{type(error).__name__}: {error}"
    say(channel, Report("crashed", {"error": f"{text}; {hint}" if hint else text}))
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
        dialect: Dialect = RATIFIED,
        busy_poll: int = 0,
        max_maps: int = SERVER.max_dma_maps,
        hello_timeout: float = 0.0,
        reporter: Reporter | None = None,
        managed: bool = True,
        filters: Sequence[Filter] = (),
        ledger: Ledger | None = None,
        estate: Estate | None = None,
        name: str = "",
        again: Again | None = None,
    ) -> None:
        """``name`` is what captures call it. ``managed``: it ends when the far end of ``channel`` has gone.

        ``busy_poll`` is in microseconds. ``again`` makes the device from its files as they are now, for :meth:`reload`.
        """
        self._channel = channel
        self._managed = managed
        reporter = reporter or Reporter()
        self._worker = Worker(
            device,
            listener,
            connection=connection,
            observer=reporter,
            dialect=dialect,
            busy_poll=busy_poll / 1e6,
            max_maps=max_maps,
            hello_timeout=hello_timeout,
            ledger=ledger,
            estate=estate,
            filters=filters,
            replaceable=again is not None,
        )
        self._followed = ledger is not None
        self._again = again
        self._code = Code() if again is not None else None
        self.loop = self._worker.loop
        """The device's loop, for its own thread."""
        self.written: dict[str, Capture | Timeline] = {}
        """The captures that :meth:`run` was asked for, by form."""
        reporter.outbox = self._outbox = Outbox(channel, self.loop)
        self._name = name
        self._filters = filters
        self._learn(device)

    def _learn(self, device: PciDevice) -> None:
        """Answer for ``device`` from now on."""
        self.device = device
        """The device as its code is now."""
        self.captures = Captures(self._worker.served, self._name or device.name)
        """The captures that run."""
        self._given = dict(device.core.options)
        pokes, tracing = Pokes(device), Tracing(self._worker.served.filters)
        self._answers: dict[str, Callable[..., Any]] = {
            "ping": lambda: None,
            "reset": self._worker.served.reset,
            "disconnect": self._disconnect,
            "leave": self.leave,
            "set": self._set,
            "registers": lambda: registers(device),
            "trace": tracing.begin,
            "untrace": tracing.end,
            "events": tracing.events,
            "maps": lambda: maps(self._worker.served.session),
            "poke": pokes.poke,
            "interrupt": pokes.interrupt,
            "statistics": self._worker.served.statistics,
            "measures": self._worker.served.measures,
            "filter": Switches(device, self._worker.served.filters, self._filters).do,
            "stop": self._worker.stop,
            "reload": self.reload,
            "capture": self.captures.start,
            "captured": self.captures.figures,
            "capture-end": self.captures.end,
            "capture-stop": self.captures.stop,
        }

    def run(
        self,
        ready: Callable[[], None] = lambda: None,
        captures: Mapping[str, int] = {},
        taking_over: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until :meth:`stop`, or until the manager has gone. Calls ``ready`` once clients are accepted, and
        ``taking_over`` before that, once the device is set up, if there is a client to go on with.

        ``captures`` are files, by form, to which the device is captured from its first message on.
        """

        def accepting() -> None:
            self._keep_code()
            for form, fd in captures.items():
                number = self.captures.start([os.dup(fd)], form=form, limit=str(WHOLE), alone=True)
                self.written[form] = self.captures[number]
            self._outbox.tell("ready")
            ready()

        def about_to_take_over() -> None:
            self._outbox.tell("taking-over")
            taking_over()

        self.loop.watch(self._channel.fileno(), self._asked)
        try:
            self._worker.run(accepting, about_to_take_over)
        finally:
            self.captures.close()
            if self._code is not None:
                self._code.close()

    def _keep_code(self) -> None:
        """A successor has the code that runs now, if that of its own cannot be run."""
        self._worker.keep(*(self._code.kept if self._code is not None else ()))

    @property
    def stopping(self) -> bool:
        """Whether :meth:`run` ends because it shall."""
        return self.loop.stopping

    def stop(self) -> None:
        """End :meth:`run`, from any thread or signal handler."""
        self._worker.stop()

    def leave(self) -> None:
        """End :meth:`run`, and leave client and state to a successor. For the device's thread."""
        self._worker.leave()

    def reload(self, fds: Sequence[int] = (), files: str = "") -> float | None:
        """Go on with the device's files as they are now: with its state, and with its client.

        Returns how long the guest has waited for that, in seconds; None if the device can be made of them, but has to
        move to another process for that. ``fds`` are the ``files``, separated by line ends, that have changed. They are
        closed. For the device's thread. Whatever is wrong with the new code is a CommandError: the present code stays.
        """
        begun = time.monotonic()
        try:
            if self._again is None:
                raise CommandError("it is not in a file of its own")
            device = self._again(dict(zip(files.splitlines(), fds, strict=True)))
            if self.device.moves:
                device.core.close()
                if not self._followed:
                    raise CommandError("it goes on in another process only, and none follows this one")
                return None
            self._worker.replace(device)
            if self._code is not None:
                self._code.close()
            self._code = Code()
        except BellwireError as error:
            raise CommandError(f"its new code is not used: {error}") from error
        except Exception as error:
            log.exception("the new code of %s fails", self._name)
            raise CommandError(f"its new code is not used: {type(error).__name__}: {error}") from error
        finally:
            wire.close(list(fds))
            if self._worker.device is not self.device:  # the new code's, or one more of the present code's
                self.captures.close()
                self._learn(self._worker.device)
                self._keep_code()
        self._outbox.tell("made", files=sources.loaded())
        return time.monotonic() - begun

    @property
    def left(self) -> bool:
        """Whether a successor shall go on with client and state."""
        return self._worker.left

    def _disconnect(self) -> None:
        if not self._worker.disconnect():
            raise CommandError("no client is connected")

    def _set(self, option: str, value: str) -> dict[str, str]:
        """The options whose values have changed since the start."""
        self.device.change(option, value)
        declared, given = self.device.layout.options, self._given
        now = self.device.core.options.items()
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
            self.loop.unwatch(self._channel.fileno())
            if self._managed:
                self._worker.leave()  # whoever has what was kept goes on with client and state
            return
        ask, fds = received
        if not isinstance(ask, Ask):
            wire.close(fds)
            return
        arguments: dict[str, Any] = dict(ask.arguments)
        if ask.what in ("capture", "reload"):
            arguments["fds"] = fds
        else:
            wire.close(fds)
        answer, lent = Answer(ask.number), list[int]()
        do = self._answers.get(ask.what)
        try:
            if do is None:
                answer.error = f"a worker knows no {ask.what!r}"
            elif ask.what in RUN_CODE and self.device.core.still:
                answer.error = f"{self._name or self.device.name} stands still for a migration"
            else:
                answer.value = do(**arguments)
                if isinstance(answer.value, Lent):
                    answer.value, fd = answer.value
                    lent = [fd]
        except BellwireError as error:
            answer.error = str(error)
        except Exception as error:
            log.exception("%s failed", ask.what)
            answer.error = f"{type(error).__name__}: {error}"
        self._outbox.answer(answer, lent)
