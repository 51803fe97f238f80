"""``bellwire run --reload``: newer code goes on as soon as a file of the device has changed.

The files are looked at a few times a second. An editor may write a file in several steps, so a change counts once the
files have stayed as they are from one look to the next.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from bellwired import sources, terminal
from bellwired.errors import CommandError
from bellwired.sources import Stamp
from bellwired.workers.worker import Serving

INTERVAL = 0.25  # seconds

log = logging.getLogger("bellwire")


class Reloading:
    """Watches the files of the device that ``serving`` serves, on the device's own thread."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._used = self._last = sources.loaded()

    def begin(self, *, seen: bool = False) -> None:
        """Look from now on. ``seen``: the files as they are now have been tried."""
        if seen:
            self._used = self._last = self._now()
        self._serving.loop.after(INTERVAL, self._look)

    def _look(self) -> None:
        now = self._now()
        settled, self._last = now == self._last, now
        if now != self._used and settled:
            self._reload(now)
        self._serving.loop.after(INTERVAL, self._look)

    def _now(self) -> dict[str, Stamp | None]:
        return {file: sources.stamp(Path(file)) for file in self._used}

    def _reload(self, now: dict[str, Stamp | None]) -> None:
        changed = ", ".join(sorted({Path(file).name for file in now if now[file] != self._used[file]}))
        begun = time.monotonic()
        try:
            if self._serving.reload() is None:
                log.info("%s changed: another process goes on with the new code", changed)
                self._serving.leave()
                return
            log.info("%s changed: the new code goes on, after %.0f ms", changed, (time.monotonic() - begun) * 1e3)
        except CommandError as error:
            log.error("%s changed: %s. The code of before goes on", changed, terminal.line(error.in_words))
        # what could not be run may have imported only a part of the files
        self._used = self._last = now | sources.loaded()
