"""What happens, as a stream that anybody may listen to.

Kinds: started, stopped, died, restarted, hung, killed, failed; connected, introduced (with what the client can
take), mapped (its memory), left; trouble (the guest's, or the device code's), crashed (the device code's last);
statistics (what has been counted since the last such event, a second ago); reloaded; lost (events that were more than
the listener or the worker's socket could take); stopping (the daemon, and with it the stream). Lines of a device's log
(kind log) come to those alone who ask for them.
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
MOST = 1000  # events that wait for a listener who is slow; beyond that the oldest are lost


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``device`` is empty where it concerns the daemon."""

    device: str
    kind: str
    fields: dict[str, Any]
    time: float = field(default_factory=time.time)


class Subscription:
    """One listener's queue: of the device ``name``, or of everything; ``log``: of the lines that it logs, too."""

    def __init__(self, name: str | None, log: bool = False) -> None:
        self._name = name
        self._log = log
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._something = asyncio.Event()

    def put(self, event: Event) -> None:
        """Never waits. What concerns the daemon concerns every listener."""
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
        """The oldest; before it, if any were lost, how many."""
        await self._something.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event("", "lost", {"count": lost, "text": f"{lost} events were lost: the listener is too slow"})
        event = self._waiting.popleft()
        if not self._waiting:
            self._something.clear()
        return event


class Broadcaster:
    """Hands every event to everyone who listens."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self.heard = asyncio.Event()
        """Set while anybody listens."""

    def publish(self, device: str, kind: str, fields: dict[str, Any]) -> None:
        """Never waits: who does not keep up is told so."""
        event = Event(device, kind, fields)
        for subscription in self._subscriptions:
            subscription.put(event)

    @contextlib.contextmanager
    def listening(self, name: str | None = None, *, log: bool = False) -> Iterator[Subscription]:
        """A queue that gets what happens during the block."""
        subscription = Subscription(name, log)
        self._subscriptions.add(subscription)
        self.heard.set()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self.heard.clear()
