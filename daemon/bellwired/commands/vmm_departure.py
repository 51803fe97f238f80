"""How the guest of ``bellwire vmm`` leaves before its end: into a file, or to another process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bellwire.paths import WRITABLE, Place
from bellwire_vmm.errors import VmmError
from bellwire_vmm.moving import HandedOverError, Policy, Round, Source
from bellwire_vmm.saved import devices, file
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.vmm import Machine, RunResult
from bellwired.commands.vmm_sockets import connected
from bellwired.errors import CommandError
from bellwired.guest.progress import Progress
from kvm_ioctls import KvmError

_MIB = 1 << 20


class Departure:
    """Saves or moves the guest when its moment has come: after ``--at`` seconds, at ``--when``, or at SIGUSR1.

    Without ``--save`` and ``--migrate-to`` it does nothing. ``guest`` tells the guest's next process what it is. A
    guest that could not leave goes on; the command fails at its end.
    """

    def __init__(self, arguments: argparse.Namespace, guest: str, progress: Progress) -> None:
        self.left = ""
        """How the guest has left, in words; empty while it is here."""
        self._arguments = arguments
        self._guest = guest
        self._progress = progress
        self._text = arguments.when.encode() if arguments.when else b""
        self._heard = bytearray()
        self._due = False
        self._decided = threading.Event()
        self._source: Source | None = None
        self._ended = False
        self._problem = ""

    @property
    def wanted(self) -> bool:
        """Whether the guest is to leave at all."""
        return bool(self._arguments.save or self._arguments.migrate_to)

    def hear(self, text: bytes) -> None:
        """Take the next output of the console: ``--when`` waits for a text."""
        if self._text:
            self._heard += text
            if self._text in self._heard:
                self._text = b""
                os.eventfd_write(self._wake, 1)
            del self._heard[: -len(self._text) or None]

    def run(self, machine: Machine, timeout: float | None) -> RunResult:
        """Run the guest until it ends, or until it has left; ``timeout`` is in seconds.

        Raises CommandError, before the guest runs, if it has a device that cannot leave.
        """
        if not self.wanted:
            return machine.resume(timeout)
        try:
            devices.check(machine)
        except VmmError as error:
            raise CommandError(str(error)) from None
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._watched(machine):
            while True:
                result = machine.resume(None if deadline is None else max(0.0, deadline - time.monotonic()))
                if not self._due or self._leave(machine, result):
                    return result
                self._due = False
                self._decided.set()

    def check(self) -> None:
        """Raise CommandError if the guest was to leave, and has not. Say so if it was to wait for a signal alone."""
        if self._problem:
            raise CommandError(self._problem)
        if not self.wanted or self.left:
            return
        if self._arguments.at is not None or self._arguments.when is not None:
            raise CommandError("the guest has ended before the moment came to leave")
        print(f"The guest was not {'saved' if self._arguments.save else 'moved'}: no SIGUSR1 came in time.")

    @contextlib.contextmanager
    def _watched(self, machine: Machine) -> Iterator[None]:
        """A context with a thread that waits for the moment."""
        self._wake, stop = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))

        def asked(number: int, frame: FrameType | None) -> None:
            os.eventfd_write(self._wake, 1)

        before = signal.signal(signal.SIGUSR1, asked)
        thread = threading.Thread(target=self._watch, args=(machine, stop), name="departure")
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            os.eventfd_write(stop, 1)
            self._decided.set()
            if source := self._source:
                source.abort()
            thread.join()
            # One more signal than it takes does not end the command.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if self.left else before)
            if self._source is not None:
                self._source.close()
            for fd in (self._wake, stop):
                os.close(fd)

    def _watch(self, machine: Machine, stop: int) -> None:
        waiter = select.poll()
        for fd in (self._wake, stop):
            waiter.register(fd, select.POLLIN)
        seconds = self._arguments.at
        while True:
            ready = [fd for fd, _ in waiter.poll(None if seconds is None else seconds * 1000)]
            seconds = None
            if stop in ready:
                return
            if ready:
                os.eventfd_read(self._wake)
            if self._arguments.save or self._approach(machine):
                self._decided.clear()
                self._due = True
                machine.stop()
                while not self._decided.wait(0.1) and not self._ended:
                    pass

    def _approach(self, machine: Machine) -> bool:
        """Copy what can be copied while the guest runs. Whether it can be stopped now."""
        policy = Policy(self._arguments.pause, self._arguments.rounds)

        def told(done: Round) -> None:
            self._progress.step(
                f"round {len(source.moved.rounds)}: {done.bytes / _MIB:.1f} MiB in {done.seconds:.2f} s"
            )

        try:
            source = Source(machine, connected(self._arguments.migrate_to), self._guest, policy, told)
        except (CommandError, OSError) as error:
            self._failed(str(error))
            return False
        self._source = source
        try:
            source.approach()
        except (VmmError, KvmError) as error:
            self._source = None
            source.close()
            if not self._ended:
                self._failed(str(error))
            return False
        return True

    def _leave(self, machine: Machine, result: RunResult) -> bool:
        """Whether the guest has left, or has ended just before."""
        if result.code is not None or result.request is not None or result.failure:
            return True
        begin = time.monotonic()
        try:
            if self._source is not None:
                moved = self._source.finish()
                copies = len(moved.rounds)
                self._report(
                    {
                        "rounds": [each._asdict() for each in moved.rounds],
                        "rest": moved.rest,
                        "state": moved.state,
                        "bytes": moved.bytes,
                        "pause": moved.pause,
                    },
                    f"moved to {self._arguments.migrate_to}: {copies} round{'s' * (copies > 1)}, "
                    f"{moved.bytes / _MIB:.1f} MiB in all, paused for {moved.pause:.3f} s",
                )
            else:
                written = self._save(machine, self._arguments.save)
                seconds = time.monotonic() - begin
                self._report(
                    {"memory": written.memory, "state": written.rest, "seconds": seconds},
                    f"saved to {self._arguments.save}: {written.memory / _MIB:.1f} MiB of RAM and "
                    f"{written.rest / _MIB:.1f} MiB of state in {seconds:.2f} s",
                )
        except HandedOverError as error:
            self.left = self._problem = str(error)
        except (VmmError, KvmError, OSError) as error:
            self._failed(str(getattr(error, "strerror", None) or error))
        if self._source is not None:
            self._source.close()
            self._source = None
        return bool(self.left)

    def _save(self, machine: Machine, path: Path) -> file.Written:
        shape = saved.shape_of(machine) | {"guest": self._guest}
        with devices.stopped(machine), Place(path) as place, place.replacing(0o600, sync=True) as made:
            return file.write(made.fileno(), machine.memory, shape, saved.take(machine))

    def _report(self, figures: dict[str, object], text: str) -> None:
        self.left = text
        self._problem = ""
        if self._arguments.figures:
            try:
                write_json(self._arguments.figures, figures)
            except CommandError as error:
                self._problem = f"the guest was {text}; {error}"

    def _failed(self, why: str) -> None:
        """Tell at once that the guest could not leave, and goes on."""
        where = self._arguments.save or self._arguments.migrate_to
        self._problem = f"{where}: {why}" if str(where) not in why else why
        print(f"bellwire: {self._problem}; the guest goes on", file=sys.stderr, flush=True)


def write_json(path: Path, figures: dict[str, object]) -> None:
    """Write figures to a file; for ``-`` to the process's standard output, where nothing else goes then."""
    text = json.dumps(figures, indent=2) + "\n"
    if str(path) == "-":
        print(text, end="", file=sys.__stdout__, flush=True)
        return
    try:
        with Place(path) as place:
            fd = place.open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, WRITABLE)
        with open(fd, "w") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"{path}: cannot write: {error.strerror}") from None
