"""Hand-overs of a device: how often a worker has gone on with the client of another, why, and how long that took."""

from __future__ import annotations

import time

MOVED, EDITED = "it was moved by hand", "its code was edited"


class HandOvers:
    """Counts the hand-overs of one device."""

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""
        """Why the last one was needed."""
        self.pause = 0.0
        """The seconds from the end of the last worker that has ended to the first turn of its successor."""
        self._begun: float | None = None

    @property
    def under_way(self) -> bool:
        """Whether a client waits for a successor."""
        return self._begun is not None

    def begin(self, reason: str, since: float = 0.0) -> None:
        """A worker has ended, and has left a client. If it was a successor that had not begun, the pause goes on.

        ``since`` is the time by CLOCK_MONOTONIC; 0 is now.
        """
        self.reason = reason
        if self._begun is None:
            self._begun = since or time.monotonic()

    def done(self) -> str:
        """The successor serves the client. Returns what there is to say."""
        assert self._begun is not None
        self.pause = time.monotonic() - self._begun
        self._begun = None
        self.count += 1
        return f"a new worker has taken over after {self.pause * 1e3:.0f} ms"

    def exchanged(self, pause: float) -> str:
        """The worker has gone on with newer code, after a pause in seconds. Returns what there is to say."""
        self.reason, self.pause = EDITED, pause
        self.count += 1
        return f"its new code has taken over after {pause * 1e3:.0f} ms"

    def end(self) -> None:
        """No successor comes."""
        self._begun = None
