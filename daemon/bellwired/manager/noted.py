"""A device's recent events and log lines: stored, logged, and passed to listeners."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from bellwire.model.limited import LimitedLog
from bellwired.manager.events import LOG

log = logging.getLogger("bellwired")
RECENT = 20
LINES = 500  # log lines that are kept


class Line(NamedTuple):
    """A line of a device's log, or several with a traceback."""

    time: float
    level: str
    text: str


class Noted:
    """The device ``name``. ``publish(kind, fields)`` passes an event to the listeners."""

    def __init__(self, name: str, publish: Callable[[str, dict[str, Any]], None]) -> None:
        self.name = name
        self.client: dict[str, Any] | None = None
        self.recent: deque[tuple[float, str]] = deque(maxlen=RECENT)
        self.lines: deque[Line] = deque(maxlen=LINES)
        """The recent log lines: of its workers, and of the manager about it."""
        self._publish = publish
        self._clients = LimitedLog(log.getChild(name))

    def _note(self, kind: str, message_id: str, text: str, level: int = logging.INFO) -> None:
        """Log an event, store it, and pass it to the listeners."""
        self._log(message_id, text, level)
        self._keep(Line(time.time(), logging.getLevelName(level).lower(), text))
        self._remember(kind, text)

    def _log(self, message_id: str, text: str, level: int) -> None:
        fields = {"MESSAGE_ID": message_id, "BELLWIRE_DEVICE": self.name}
        if self.client is not None:
            fields["BELLWIRE_CLIENT"] = str(self.client["pid"])
        log.log(level, "%s: %s", self.name, text, extra=fields)

    def _remember(self, kind: str, text: str) -> None:
        self.recent.append((time.time(), text))
        self._publish(kind, {"text": text})

    def _keep(self, line: Line) -> None:
        self.lines.append(line)
        self._publish(LOG, line._asdict())

    def _note_client(self, kind: str, message_id: str, text: str) -> None:
        """The same for a client's event, at a limited rate: clients that come and go must not fill the log."""
        if self._clients.admits(kind):
            self._note(kind, message_id, f"client {text}")
        else:
            self._publish(kind, {"text": f"client {text}"})
