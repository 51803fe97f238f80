"""The parent of ``bellwire run``: it holds the client's descriptors, and forks another process when one dies.

It has imported the device's file, and has tried the options out. It runs no device, and reads nothing that a guest or a
client sends.
Each process that it forks serves the device as if it were the only one. What that has set up for its client, it tells
the parent, as a worker tells the manager of the daemon. A successor finds all of it among the descriptors that it
inherits by the fork.

A process says so when it ends because it shall. Any other end is a death.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import os
import select
import signal
import socket
import time
from typing import Any

from bellwire.serve.worker import RECOVERING, TRYING
from bellwired import messages
from bellwired.box import privileges
from bellwired.errors import CommandError
from bellwired.logs import stderr_is_the_journal
from bellwired.manager.holder import Holder
from bellwired.manager.life import Restarts, how_it_ended
from bellwired.manager.watch import LOOKS, Watch
from bellwired.settings import Daemon, Filters
from bellwired.workers import hand_over, process, wire
from bellwired.workers.event_rings import EventRings
from bellwired.workers.hand_over import HandOvers
from bellwired.workers.ward import Ward
from bellwired.workers.wire import MOVED, Answer, Ask, Drop, Keep, Report, WireError
from vfio_user import Estate, Kept

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("bellwire")


class Parent:
    """Of the processes that serve the device ``name``, one after the other.

    One that gets on with nothing of what its client wants for ``hang_timeout`` seconds is killed; 0 turns that off.
    After more than ``limit`` deaths within some minutes, as the daemon counts them, the device is given up. The memory
    of all is ``hidden`` from other processes of the user, or can be looked at by debuggers.

    If the device's file may be ``edited``, and several processes in a row do not become ready, the next one is told to
    have the code of the command's start.
    """

    def __init__(self, name: str, *, hang_timeout: float, limit: int, hidden: bool, edited: bool = False) -> None:
        self._hand_overs = HandOvers()  # a forked process has a copy, as it was at the fork
        self._name = name
        self._limit = hang_timeout
        self._daemon = Daemon(restart_limit=limit)
        self._hidden = hidden
        self._edited = edited
        self._holder = Holder(name)
        self._watch = Watch(self._holder)
        self._restarts = Restarts()
        self._filters: Filters | None = None
        """What the last process has told: it is not read here."""
        self._rings = EventRings()
        self._channel: socket.socket
        self._pid = 0
        self._since = 0.0
        self._signals: list[int] = []
        self._ready = self._over = False
        self._watched = False
        self._why = ""
        """Why the process was killed here."""
        self._waker, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._numbers = itertools.count(1)

    def run(self, ready_fd: int | None = None) -> Ward | int:
        """Fork. Returns a Ward in each process that is to serve. In the parent it returns the exit status at the end.

        That is negative for a signal that has ended the last process. ``ready_fd`` is closed here: the first process
        has it. A CommandError if the device is given up.
        """
        gc.collect()
        gc.freeze()  # a collection in a process must not touch the pages that all share
        before = {number: signal.signal(number, self._end) for number in _SIGNALS}
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        try:
            return self._run(ready_fd)
        finally:  # in a process that was forked, too
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._waker)
            os.close(self._woken)

    def _run(self, ready_fd: int | None) -> Ward | int:
        for number in itertools.count():
            ward = self._fork(number)
            if ward is not None:
                return ward
            if ready_fd is not None and not number:
                os.close(ready_fd)
            status = self._look_after()
            self._rings.worker_ended()
            if self._over or self._signals or (not number and not self._ready):
                self._holder.close()
                return self._status(status)
            if not self._goes_on(status):
                self._holder.close()
                return 0
        raise AssertionError

    def _fork(self, number: int) -> Ward | None:
        """Fork a process. Returns its Ward in it, and None in the parent."""
        parent, (self._channel, theirs) = os.getpid(), wire.pair()
        self._ready = self._over = self._watched = False
        self._why = ""
        self._watch.answered()
        self._since = time.monotonic()
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            self._channel.setblocking(False)
            if self._hidden:
                privileges.hide_memory()
            if self._signals:  # just before the fork
                self._ask("stop")
            return None
        privileges.die_with_parent(parent)
        privileges.hide_memory(hidden=False)  # its box hides it
        self._channel.close()
        try:
            as_started = self._edited and (self._restarts.stuck or self._holder.has(TRYING, RECOVERING))
            return Ward(
                theirs,
                number,
                self._estate(),
                self._hand_overs,
                self._rings,
                filters=self._filters,
                as_started=as_started,
            )
        except (ValueError, TypeError):  # device code has told nonsense: nothing can be taken over
            log.exception("%s: its ledger is spoilt", self._name)
            os._exit(1)

    def _estate(self) -> Estate | None:
        """What the holder has, for the process that has been forked just now: it owns the descriptors here."""
        if not self._holder.holds:
            return None
        entries = self._holder.entries()
        found = {key: Kept(key, json.loads(note), tuple(fds)) for key, (note, fds) in entries.items()}
        return Estate(found, hung=self._restarts.hung)

    # -- one process

    def _look_after(self) -> int:
        """Hold what the process tells until it ends, and see to it that it gets on. Returns its status."""
        handle = os.pidfd_open(self._pid)
        poll = select.poll()
        for fd in (handle, self._channel.fileno(), self._waker):
            poll.register(fd, select.POLLIN)
        try:
            while handle not in (ready := {fd for fd, _ in poll.poll(self._pause * 1000 or None)}):
                self._forget_signals()
                if not ready:
                    self._see()
                elif self._channel.fileno() in ready and not self._hear():
                    poll.unregister(self._channel)
            while self._hear():
                pass
        finally:
            os.close(handle)
            self._channel.close()
            _, status = os.waitpid(self._pid, 0)
            self._pid = 0
        return os.waitstatus_to_exitcode(status)

    @property
    def _pause(self) -> float:
        """The seconds until the next look; 0.0 if there is nothing to look at."""
        if self._hand_overs.under_way and not self._watched:
            return self._daemon.start_timeout
        return self._limit / LOOKS if self._watched and self._holder.holds and not self._why else 0.0

    def _hear(self) -> bool:
        """Take a message. False if there is none."""
        try:
            received = wire.receive(self._channel)
        except BlockingIOError:
            return False
        except WireError as error:
            log.error("%s: its process talks nonsense: %s", self._name, error)
            return True
        if received is None:
            return False
        message, fds = received
        if isinstance(message, Keep | Drop):
            self._holder.heard(message, fds)
            return True
        if isinstance(message, Report) and message.kind == "ring" and fds:
            self._rings.keep(fds.pop(0))
        wire.close(fds)
        if isinstance(message, Answer):
            self._watch.answered()
        elif isinstance(message, Report):
            self._reported(message.kind, message.fields)
        return True

    def _reported(self, kind: str, fields: dict[str, Any]) -> None:
        match kind:
            case "taking-over":
                self._watched = True
            case "ready":
                self._ready = self._watched = True
                self._restarts.served()
                self._since = time.monotonic()
                if self._hand_overs.under_way:
                    said = self._hand_overs.done()
                    if not stderr_is_the_journal():  # which has it from the process
                        log.warning("%s", said)
            case "filtered":
                self._filters = fields.get("filters")
            case "debugged":
                self._limit = 0.0
            case "over":
                self._over = True

    def _see(self) -> None:
        """Kill the process if it hangs."""
        waited = self._watch.look(self._pause) if self._watched else self._pause
        if waited >= self._limit:
            stopped = process.is_stopped(self._pid)
            self._restarts.hung = not stopped
            self._why = f"{'a signal had stopped it' if stopped else 'it hung'} for {waited:.1f} s"
            log.error("%s: killing it", self._why, extra={"MESSAGE_ID": messages.HUNG})
            os.kill(self._pid, signal.SIGKILL)
        elif waited:
            self._ask("ping")

    def _ask(self, what: str) -> None:
        with contextlib.suppress(OSError):
            wire.send(self._channel, Ask(next(self._numbers), what))

    # -- its end

    def _end(self, number: int, _: object) -> None:
        """A signal: the process shall end. At a second one it ends at once."""
        self._signals.append(number)
        if len(self._signals) == 1:
            log.info("%s: stopping", signal.Signals(number).name)
            self._ask("stop")
        elif self._pid:
            os.kill(self._pid, signal.SIGKILL)

    def _forget_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._waker, 64)

    def _status(self, status: int) -> int:
        """The exit status at the end, by that of the last process."""
        if status >= 0:
            return status
        if len(self._signals) > 1 or -status in self._signals:
            return -self._signals[-1]
        if self._over:
            return status
        raise CommandError(f"{self._name}: {self._how(status)}")

    def _goes_on(self, status: int) -> bool:
        """Whether another process follows one that has died: at once, or after a pause. A CommandError at the limit."""
        if status == MOVED and self._holder.holds:
            self._hand_overs.begin(hand_over.MOVED)
            return True
        why = self._how(status)
        self._restarts.unready += not self._ready
        log.error("%s", why, extra={"MESSAGE_ID": messages.DIED})
        served: float | None = None
        if self._holder.holds:
            self._hand_overs.begin(why)
            served = time.monotonic() - self._since if self._ready else 0.0
        delay = self._restarts.delay(self._daemon, served=served)
        if delay is None:
            self._holder.close()
            times = f"{self._restarts.deaths} times in {self._daemon.restart_window:g} s"
            raise CommandError(f"{self._name} is given up: {why}; {times}")
        if served is None:
            log.warning("another one starts", extra={"MESSAGE_ID": messages.RESTARTED})
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        poll.poll(delay * 1000)
        return not self._signals

    def _how(self, status: int) -> str:
        return f"{how_it_ended(status, 'its process')}{f': {self._why}' if self._why else ''}"
