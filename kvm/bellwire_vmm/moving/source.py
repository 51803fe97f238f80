"""The end that a machine leaves: rounds of copies while the guest runs, a pause, and the last word."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bellwire_vmm.errors import MigrationError, StateError
from bellwire_vmm.machine.memory import PAGE
from bellwire_vmm.moving.dirty import DirtyPages
from bellwire_vmm.moving.wire import ADDRESS, MOST_PAGES, PATIENCE, Kind, RefusedError, Wire
from bellwire_vmm.saved import devices, sections
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.saved.file import used
from bellwire_vmm.vmm import Machine

_MIB = 1 << 20
LEAST_PATIENCE = 15.0  # seconds


class Round(NamedTuple):
    """One copy of what was written since the last one: bytes of RAM, and how long it took in seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop the guest: when the rest will take at most ``pause`` seconds, by the rate of the copies so far.

    A guest that writes too fast for that after ``rounds`` rounds does not move.
    """

    pause: float = 0.5
    rounds: int = 30

    @property
    def patience(self) -> float:
        """The seconds after which a guest that stands still goes on here, if the target has not taken all of it."""
        return max(LEAST_PATIENCE, 5 * self.pause)


@dataclass(slots=True)
class Moved:
    """What a move has cost. ``pause`` is the time in which the guest did not run, in seconds; ``bytes`` is all sent.

    ``rounds`` are the copies while the guest ran; ``rest`` is RAM, and ``state`` the rest, that was sent in the pause.
    """

    rounds: list[Round] = field(default_factory=list)
    rest: int = 0
    state: int = 0
    bytes: int = 0
    pause: float = 0.0


class HandedOverError(MigrationError):
    """The target was told to start the guest, and has not answered: nobody knows whether it did."""


class Source:
    """Moves ``machine`` to the target at the far end of ``sock``, which it owns. ``guest`` is for the target to know.

    Call `approach` while the guest runs, stop the machine, then call `finish`. Both raise MigrationError or StateError:
    then the guest is still here, and can be resumed (but for HandedOverError). ``told`` is called after each round.
    """

    def __init__(
        self,
        machine: Machine,
        sock: socket.socket,
        guest: str,
        policy: Policy = Policy(),
        told: Callable[[Round], None] = lambda _: None,
    ) -> None:
        self.moved = Moved()
        self._machine = machine
        self._guest = guest
        self._policy = policy
        self._told = told
        self._dirty = DirtyPages(machine)
        self._rest: list[range] = []
        self._wire = Wire(sock, "target")
        self._since = 0.0

    def approach(self) -> None:
        """Copy RAM, and what is written meanwhile, until the rest is little enough. Then stop the machine."""
        devices.check(self._machine)
        shape = saved.shape_of(self._machine) | {"guest": self._guest}
        self._wire.send(Kind.HELLO, saved.to_json(shape))
        self._wire.expect_good()
        self._dirty.begin()
        self._copy(used(self._machine.memory))
        for _ in range(self._policy.rounds):
            self._rest = self._dirty.collect()
            if self._expected() <= self._policy.pause:
                self._since = time.monotonic()
                return
            if self._dirty.unlogged:  # all of RAM is left after each round
                raise MigrationError(
                    f"a device's server logs no writes, so all of RAM is copied in the pause: that would take "
                    f"{self._expected():.1f} s, and at most {self._policy.pause:g} s are allowed"
                )
            self._copy(self._rest)
            self._rest = []
        raise MigrationError(
            f"the guest writes too fast: after {self._policy.rounds} rounds, it would pause for "
            f"{self._expected():.1f} s, and at most {self._policy.pause:g} s are allowed"
        )

    def finish(self) -> Moved:
        """Move a stopped machine's last pages and its state, and let the target start the guest.

        If that fails, the devices run again here.
        """
        lost: HandedOverError | None = None
        with devices.stopped(self._machine):
            try:
                self._hand_over()
            except HandedOverError as error:
                lost = error
            except (MigrationError, StateError) as error:
                self._wire.fail(str(error))
                raise
        if lost is not None:
            raise lost
        self.moved.pause = time.monotonic() - self._since
        self.moved.bytes = self._wire.sent
        return self.moved

    def abort(self) -> None:
        """End an `approach` that another thread makes: it raises MigrationError."""
        self._wire.abort()

    def close(self) -> None:
        """Close the connection, and log no more writes. A target that has not started the guest gives up."""
        self._wire.close()
        self._dirty.end()

    def _hand_over(self) -> None:
        self._wire.limit(self._policy.patience)
        state = sections.pack(saved.take(self._machine))
        rest = [*self._rest, *self._dirty.collect()]
        if self._dirty.unlogged:
            rest = self._dirty.everything()
        self._send(rest)
        self.moved.rest, self.moved.state = sum(map(len, rest)), len(state)
        self._wire.send(Kind.STATE, state)
        self._wire.expect_good()
        self._wire.send(Kind.GO)
        self._wire.limit(PATIENCE)
        try:
            self._wire.expect_good()
        except RefusedError:
            raise
        except MigrationError as error:
            raise HandedOverError(f"{error}, after it was told to start the guest, which ends here") from None

    def _copy(self, runs: Iterable[range]) -> None:
        begin = time.monotonic()
        done = Round(self._send(runs), time.monotonic() - begin)
        self.moved.rounds.append(done)
        self._told(done)

    def _send(self, runs: Iterable[range]) -> int:
        total, memory = 0, self._machine.memory
        for run in runs:
            for address in range(run.start, run.stop, MOST_PAGES):
                size = min(MOST_PAGES, run.stop - address)
                self._wire.send(Kind.PAGES, ADDRESS.pack(address), memory.read(address, size))
                total += size
        return total

    def _expected(self) -> float:
        """The seconds that the rest would take, at the rate of all copies so far."""
        rest = sum(map(len, self._rest))
        if self._dirty.unlogged:
            rest = sum(map(len, self._dirty.everything()))
        sent = sum(each.bytes for each in self.moved.rounds)
        seconds = sum(each.seconds for each in self.moved.rounds)
        return rest * seconds / max(sent, PAGE)
