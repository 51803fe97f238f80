"""What the worker of a device reports, and what the manager knows of the device by that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwired import messages
from bellwired.manager.boxed import Boxed
from bellwired.manager.life import State
from bellwired.manager.noted import Line, Noted
from bellwired.sources import Stamp, stamp
from bellwired.workers.hand_over import HandOvers
from bellwired.workers.wire import Report


class Reported(Noted):
    """The device ``name``, whose box is ``box``. ``publish(kind, fields)`` passes an event to the listeners."""

    def __init__(self, name: str, box: Boxed, publish: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(name, publish)
        self.state = State.STOPPED
        self.since = time.time()
        self.error = ""
        self.files: dict[str, Stamp | None] = {}
        """The Python files that its last worker has loaded, and their states."""
        self.old_code = ""
        """Why its worker runs older code than that on disk."""
        self.kept_code = ""
        """Why its worker has not gone on with the files as they are."""
        self.over = False
        """Whether its worker has said that it ends because it shall: any other end is a death."""
        self.box = box
        self.hand_overs = HandOvers()
        self._attempt: asyncio.Future[str] | None = None
        """The last start: an empty text once the worker accepts clients, or why it has failed."""
        self._overdue: asyncio.TimerHandle | None = None

    def edited(self) -> list[str]:
        """The Python files of the device that have changed since its worker started."""
        return [file for file, known in self.files.items() if stamp(Path(file)) != known]

    def exchanged(self, pause: float) -> None:
        """Its worker has gone on with newer code, after a pause in seconds."""
        self._note("taken-over", messages.TAKEN_OVER, self.hand_overs.exchanged(pause), logging.WARNING)

    def _heard(self, report: Report) -> None:
        kind, fields = report.kind, report.fields
        match kind:
            case "ready":
                if self.state is State.STARTING:
                    self._set(State.RUNNING)
                    self.error = ""
                    self._settle("")
                    self._tell_ready()
                return
            case "taking-over":
                self._taking_over()
                return
            case "over":
                self.over = True
                return
            case "log":
                self._keep(Line(fields["time"], fields["level"], fields["text"]))
                return
            case "made":
                self.files = {file: known and (known[0], known[1], known[2]) for file, known in fields["files"].items()}
                self.kept_code = ""
                if self.state is State.RUNNING:  # else a worker that has failed with these files tells more
                    self.old_code = ""
                return
            case "old-code" if self.state is State.STARTING and not self.old_code:
                self.old_code = fields["text"]
                self._note(kind, messages.OLD_CODE, fields["text"], logging.ERROR)
                return
            case "boxed":
                self.box.entered(fields)
                return
            case "denied":
                self._note(kind, messages.DENIED, fields["text"], logging.WARNING)
                return
            case "refused":
                self.error = fields["error"]
                return
            case "crashed":
                self.error = fields["error"]
            case "connected":
                self.client = {**fields, "since": time.time()}
                self._client_changed()
                self._note_client(kind, messages.CLIENT, f"connected: process {fields['pid']}, user {fields['uid']}")
                return
            case "introduced" if self.client is not None:
                self.client["capabilities"] = fields
                self._client_changed()
            case "mapped" if self.client is not None:
                self.client |= fields
            case "left":
                self._note_client(kind, messages.CLIENT_LEFT, f"left: {fields['reason']}")
                self.client = None
                return
            case "trouble":
                self.recent.append((time.time(), fields["text"]))
        self._publish(kind, fields)

    def _client_changed(self) -> None:
        """There is something new to know of the client, or of its hand-overs."""

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.time()

    def _settle(self, why: str) -> None:
        """Finish the last start: successfully, or with the reason ``why``."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self._attempt is not None and not self._attempt.done():
            self._attempt.set_result(why)

    def _taking_over(self) -> None:
        """The worker goes on with a client, and is to be watched."""

    def _tell_ready(self) -> None:
        if self.hand_overs.under_way:
            self._note("taken-over", messages.TAKEN_OVER, self.hand_overs.done(), logging.WARNING)
            self._client_changed()
        else:
            self._note("started", messages.STARTED, "accepts clients", logging.INFO)
