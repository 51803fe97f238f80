"""What filters delay: the guest's events, which stay in order, and the device's, which do not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bellwire.model.host import Timer

MOST_EVENTS = 256
MOST_BYTES = 16 << 20
Steps = Iterator[float]
After = Callable[[float, Callable[[], None]], Timer]


class Dropped(Exception):
    """The event was dropped while it waited: the device was reset, or the queue is full."""


class Passage(NamedTuple):
    """An event on its way: its ``steps``, the ``size`` of what it holds in bytes, and who is told when it has ended."""

    steps: Steps
    size: int
    ended: Callable[[Exception | None], None]

    def go(self) -> float | None:
        """Take steps until it has to wait: the seconds. None if it has ended."""
        try:
            pause = next(self.steps, None)
        except Exception as error:  # noqa: BLE001 it belongs to this event, and those behind it go on
            self.ended(error)
            return None
        if pause is None:
            self.ended(None)
        return pause

    def finish(self) -> None:
        """Take all steps now."""
        while self.go() is not None:
            pass

    def drop(self) -> None:
        """It never reaches the model."""
        self.ended(Dropped())


class Arrivals:
    """The guest's events: the one that waits now, and behind it, in order, all that came later.

    A guest could fill the queue without end. When it is full, nothing waits any more until it is empty. Behind an event
    that is held for ever, new ones are dropped instead. ``full(dropped)`` tells of both.
    """

    def __init__(self, after: After, full: Callable[[bool], None]) -> None:
        self._after = after
        self._full = full
        self._waiting: Passage | None = None
        self._timer: Timer | None = None
        self._queue: deque[Passage] = deque()
        self._bytes = 0
        self._going = self._hurried = False  # whether one goes on now; whether all go on without a wait

    def __len__(self) -> int:
        return len(self._queue) + (self._waiting is not None)

    def admit(self, passage: Passage) -> bool:
        """Take the steps of an event. True if all are done: ``ended`` is then not called, and errors come out here.

        False if it waits: ``ended`` is called later.
        """
        if self._waiting is not None and not self._make_room(passage):
            return False
        if self._waiting is None:
            pause = next(passage.steps, None)
            if pause is None:
                return True
            self._hold(passage, pause)
        else:
            self._queue.append(passage)
            self._bytes += passage.size
        return False

    def finish(self) -> None:
        """Let everything go on that waits. An event that calls this on its way ends first, and then the others do."""
        self._hurried = True
        if self._timer is not None:
            self._timer.cancel()
        self._go_on()

    def clear(self) -> None:
        """Drop everything that waits, but not an event that calls this on its way."""
        found = [*([self._waiting] if self._waiting and not self._going else ()), *self._queue]
        if not self._going:
            if self._timer is not None:
                self._timer.cancel()
            self._waiting = self._timer = None
        self._queue.clear()
        self._bytes = 0
        for passage in found:
            passage.drop()

    def _make_room(self, passage: Passage) -> bool:
        if len(self._queue) < MOST_EVENTS and self._bytes + passage.size <= MOST_BYTES:
            return True
        held_for_ever = self._timer is None
        self._full(held_for_ever)
        if held_for_ever:
            passage.drop()
            return False
        self.finish()
        return True

    def _hold(self, passage: Passage, pause: float) -> None:
        self._waiting = passage
        self._timer = None if pause == math.inf else self._after(pause, self._go_on)

    def _go_on(self) -> None:
        """The event that waits goes on, and then those behind it, until one has to wait."""
        if self._going:
            return
        self._going = True
        try:
            while self._waiting is not None:
                pause = self._waiting.go()
                if pause is None:
                    self._waiting = self._queue.popleft() if self._queue else None
                    self._bytes -= self._waiting.size if self._waiting else 0
                elif not self._hurried:
                    self._hold(self._waiting, pause)
                    return
        finally:
            self._going = self._hurried = False


class Departures:
    """The device's events that wait: interrupts and DMA writes. Each goes on at its own time.

    They are limited as :class:`Arrivals`; what is too much does not wait.
    """

    def __init__(self, after: After, full: Callable[[bool], None]) -> None:
        self._after = after
        self._full = full
        self._waiting: dict[int, tuple[Passage, Timer | None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, passage: Passage) -> bool:
        """As :meth:`Arrivals.admit`."""
        for pause in passage.steps:
            if len(self._waiting) < MOST_EVENTS and self._bytes + passage.size <= MOST_BYTES:
                self._hold(passage, pause)
                return False
            self._full(False)
        return True

    def finish(self) -> None:
        """Let everything go on that waits."""
        for passage in self._take():
            passage.finish()

    def clear(self) -> None:
        """Drop everything that waits."""
        for passage in self._take():
            passage.drop()

    def _take(self) -> list[Passage]:
        waiting, self._waiting = self._waiting, {}
        self._bytes = 0
        for _, timer in waiting.values():
            if timer is not None:
                timer.cancel()
        return [passage for passage, _ in waiting.values()]

    def _hold(self, passage: Passage, pause: float) -> None:
        key = id(passage)
        timer = None if pause == math.inf else self._after(pause, lambda: self._go_on(key))
        self._waiting[key] = passage, timer
        self._bytes += passage.size

    def _go_on(self, key: int) -> None:
        passage, _ = self._waiting.pop(key)
        self._bytes -= passage.size
        pause = passage.go()
        if pause is not None:
            self._hold(passage, pause)
