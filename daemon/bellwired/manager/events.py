"""What happens, as a stream that anybody may listen to.

Kinds: started, stopped, died, restarted, hung, killed, failed; connected, introduced (with what the client can
take), mapped (its memory), left; trouble (the guest's, or the device code's); statistics; reloaded; lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MOST = 1000  # events that wait for a listener who is slow; beyond that the oldest are lost


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``device`` is empty where it concerns the daemon."""

    device: str
    kind: str
    fields: dict[str, Any]
    time: float = field(default_factory=time.time)


class Hub:
    """Hands every event to everyone who listens."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Event]] = set()

    def publish(self, device: str, kind: str, fields: dict[str, Any]) -> None:
        """Never waits: who does not keep up is told so."""
        event = Event(device, kind, fields)
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
                queue.get_nowait()
                queue.put_nowait(Event("", "lost", {"text": "events were lost: the listener is too slow"}))
            queue.put_nowait(event)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[Event]]:
        """A queue that gets what happens during the block."""
        queue: asyncio.Queue[Event] = asyncio.Queue(MOST)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
