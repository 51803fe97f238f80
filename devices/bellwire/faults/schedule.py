"""A schedule: which of the events that a fault could strike it strikes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bellwire.faults.condition import Condition
from bellwire.filters import Argument, Duration
from bellwire.model.host import Timer

LONGEST = 86400.0
"""Seconds: the longest time in a schedule is a day."""
KEYS: dict[str, Argument[Any]] = {
    "every": Argument(0, least=0, help="each so-manieth event: every=100 strikes the 100th, the 200th, ...; 0: each"),
    "at": Argument(0, least=0, help="the so-manieth event, counted from 1; with every, the first of them; 0: any"),
    "p": Argument(1.0, least=0.0, most=1.0, help="the probability that an event is struck"),
    "seed": Argument(0, least=0, help="where random numbers begin: the same seed strikes the same events"),
    "times": Argument(0, least=0, help="how often it strikes at most; 0: no limit"),
    "when": Argument("", help="a condition on a register, as mmio.status.DONE: only events at which it holds count"),
    "after": Duration(most=LONGEST, help="how long to wait before events count"),
    "for": Duration(
        most=LONGEST, help="how long it goes on, from the end of after, or from the event of at; 0: without end"
    ),
}
"""The parts of a schedule: arguments that every fault has."""
for _name, _key in KEYS.items():
    _key.name = _name


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which events are struck. Those at which all parts hold; without any part, all events.

    ``after`` and ``lasts`` (written ``for``) are seconds. They open a window of time, and an event outside it does not
    count. Nor does one at which ``when`` does not hold. The others are numbered from 1 for ``at`` and ``every``.
    With ``at`` and ``lasts``, the window ends ``lasts`` seconds after that event, and the events behind it are struck,
    too.
    """

    every: int = 0
    at: int = 0
    p: float = 1.0
    seed: int = 0
    times: int = 0
    when: Condition | None = None
    after: float = 0.0
    lasts: float = 0.0

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Schedule:
        """The schedule in the arguments of a fault, which are checked. An OptionError for a condition that is none."""
        given = {name: value for name, value in arguments.items() if name in KEYS}
        when = given.pop("when", "")
        return cls(lasts=given.pop("for", 0.0), when=Condition(when) if when else None, **given)

    @property
    def by_event(self) -> bool:
        """Whether an event has to happen before the fault strikes; else time alone decides."""
        return bool(self.every or self.at or self.p < 1 or self.when)


class Clock(Protocol):
    """What runs a callback later: the host of a device (:class:`bellwire.model.host.Host`)."""

    def after(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` ``delay`` seconds from now."""


class Trigger:
    """A schedule that runs: it is asked at each event whether the fault strikes.

    ``holds`` tells whether the condition of ``when`` holds. ``turned`` is called with True when the window of time
    opens, and with False when it closes or when ``times`` is used up.
    """

    def __init__(
        self,
        schedule: Schedule,
        clock: Clock,
        holds: Callable[[], bool] | None = None,
        turned: Callable[[bool], object] = bool,
    ) -> None:
        self.schedule = schedule
        self.open = False
        """Whether the window of time is open."""
        self.seen = 0
        """The number of events that have counted."""
        self.struck = 0
        """The number of events that the fault has struck."""
        self._clock = clock
        self._holds = holds
        self._turned = turned
        self._random = random.Random(schedule.seed)
        self._timer: Timer | None = None

    def start(self) -> None:
        """Open the window, at once or when ``after`` has passed."""
        if self.schedule.after:
            self._timer = self._clock.after(self.schedule.after, self._open)
        else:
            self._open()

    def stop(self) -> None:
        """Close the window for ever. ``turned`` is not called."""
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def strikes(self) -> bool:
        """An event happens: count it, and say whether the fault strikes."""
        if not self.open or (self._holds is not None and not self._holds()):
            return False
        self.seen += 1
        if not self._due(self.schedule, self.seen) or (
            self.schedule.p < 1 and self._random.random() >= self.schedule.p
        ):
            return False
        self.struck += 1
        if self.struck == self.schedule.times:
            self._close()
        return True

    def _due(self, schedule: Schedule, number: int) -> bool:
        """Whether ``at`` and ``every`` choose the event with this number."""
        if not schedule.at:
            return not schedule.every or number % schedule.every == 0
        if number == schedule.at and schedule.lasts:
            self._timer = self._clock.after(schedule.lasts, self._close)
        if number <= schedule.at:
            return number == schedule.at
        if schedule.every:
            return (number - schedule.at) % schedule.every == 0
        return schedule.lasts > 0

    def _open(self) -> None:
        self.open, self._timer = True, None
        if self.schedule.lasts and not self.schedule.at:
            self._timer = self._clock.after(self.schedule.lasts, self._close)
        self._turned(True)

    def _close(self) -> None:
        if self.open:
            self.stop()
            self._turned(False)
