"""The events of all devices, as streams to which callers subscribe.

The kinds of events:

* the device: started, stopped, died, restarted, taken-over, old-code, hung, killed, failed;
* its client: connected, introduced (with the client's capabilities), mapped (its memory), left;
* mistakes: trouble (of the guest, or of the device's code), crashed (an exception that ended the worker);
* statistics (the counts since the last such event, a second ago);
* the daemon: reloaded, stopping (the stream ends with it);
* lost: the number of events for which the listener's queue or the worker's socket had no room;
* log: a line of a device's log, only for listeners that ask for log lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LOG = "log"
"""The kind of an event that is a line of a device's log."""
MOST = 1000  # events that wait for a slow listener; beyond that the oldest are lost


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``device`` is empty if the event concerns the daemon."""

    device: str
    kind: str
    fields: dict[str, Any]
    time: float = field(default_factory=time.time)


class Subscription:
    """One listener's queue: events of the device ``name``, or of all. With ``log``, log lines too."""

    def __init__(self, name: str | None, log: bool = False) -> None:
        self._name = name
        self._log = log
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._something = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event without waiting. Every listener gets the daemon's events."""
        if self._name is not None and event.device not in (self._name, ""):
            return
        if event.kind == LOG and not self._log:
            return
        if len(self._waiting) == MOST:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._something.set()

    async def get(self) -> Event:
        """The oldest event. If events were lost, an event with their number comes before it."""
        await self._something.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event("", "lost", {"count": lost, "text": f"{lost} events were lost: the listener is too slow"})
        event = self._waiting.popleft()
        if not self._waiting:
            self._something.clear()
        return event


class Broadcaster:
    """Passes every event to every listener."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self.heard = asyncio.Event()
        """Set while there is a listener."""

    def publish(self, device: str, kind: str, fields: dict[str, Any]) -> None:
        """Pass an event on without waiting. A slow listener loses events, and is told how many."""
        event = Event(device, kind, fields)
        for subscription in self._subscriptions:
            subscription.put(event)

    @contextlib.contextmanager
    def listening(self, name: str | None = None, *, log: bool = False) -> Iterator[Subscription]:
        """A queue that receives the events during the block."""
        subscription = Subscription(name, log)
        self._subscriptions.add(subscription)
        self.heard.set()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self.heard.clear()
