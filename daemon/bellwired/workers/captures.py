"""The captures of a device that a worker writes, to files that others have opened."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from bellwire.capture.capture import Capture, Piece
from bellwire.capture.files import SMALLEST, STOPPED, check_files
from bellwire.capture.timeline import DmaTimeline, Timeline
from bellwire.serve.served import Served
from bellwired.errors import CommandError
from bellwired.workers import wire

PCAPNG, TIMELINE, DMA_TIMELINE = "pcapng", "timeline", "timeline with dma"
FORMS = (PCAPNG, TIMELINE, DMA_TIMELINE)
MOST_FILES = 4  # at most wire.MOST_FDS
MOST_CAPTURES = 8
WHOLE = 1 << 30
"""The most bytes of a file, unless the user says otherwise."""
LARGEST = 1 << 40
"""The most bytes that a file of a capture may have."""


class Captures:
    """The captures of the device ``name``; each has a number."""

    def __init__(self, served: Served, name: str) -> None:
        self._served = served
        self._name = name
        self._running: dict[int, Capture | Timeline] = {}
        self._numbers = itertools.count(1)

    def __getitem__(self, number: int) -> Capture | Timeline:
        return self._running[number]

    def start(self, fds: Sequence[int], *, form: str, limit: str, alone: bool = False) -> int:
        """Begin a capture of at most ``limit`` bytes in each file; its number.

        The descriptors belong to it, or are closed. ``alone``: nobody waits for its end, so the log has an early one.
        """
        why = self._refusal(form, limit, len(fds)) or check_files(fds)
        if why:
            wire.close(list(fds))
            raise CommandError(why)
        capture = self._made(form, fds, int(limit))
        if capture.files.ended:
            capture.files.close()
            raise CommandError(capture.files.ended)
        if alone:
            capture.files.ends_early = functools.partial(self._ends_early, capture, form)
        number = next(self._numbers)
        self._running[number] = capture
        self._served.filters.add(capture.filter, place=0)
        self._connect()
        return number

    def figures(self, number: str) -> dict[str, Any]:
        """What the capture has so far, and why it has ended, if it has."""
        capture = self._running.get(int(number))
        if capture is None:
            raise CommandError("there is no such capture: the worker that wrote it has ended")
        counted = {"messages": capture.messages, "events": capture.events}
        return counted | {"bytes": capture.files.written, "ended": capture.files.ended}

    def end(self, number: str, why: str = STOPPED) -> None:
        """End the capture, if it runs. Its figures can still be asked for."""
        capture = self._running.get(int(number))
        if capture is not None:
            capture.files.close(why)
            if any(each is capture.filter for _, each in self._served.filters):
                self._served.filters.remove(capture.filter)
            self._connect()

    def stop(self, number: str, why: str = STOPPED) -> dict[str, Any]:
        """End the capture, and forget it. Returns its figures."""
        self.end(number, why)
        figures = self.figures(number)
        del self._running[int(number)]
        return figures

    def close(self) -> None:
        """End all captures."""
        for number in self._running:
            self.end(str(number))

    def _ends_early(self, capture: Capture | Timeline, form: str, why: str) -> None:
        what = "capture" if form == PCAPNG else "timeline"
        log = self._served.core.log
        log.warning((self, form), "the %s has ended early: %s; it has %s", what, why, capture.amount())

    def _made(self, form: str, fds: Sequence[int], limit: int) -> Capture | Timeline:
        if form == PCAPNG:
            return Capture(self._name, self._served.core.layout, fds, limit)
        return (DmaTimeline if form == DMA_TIMELINE else Timeline)(self._name, fds, limit)

    def _connect(self) -> None:
        """Show messages to the captures that go on."""
        captures = [each for each in self._running.values() if isinstance(each, Capture) and not each.files.ended]
        self._served.tap(None if not captures else captures[0] if len(captures) == 1 else _Several(captures))

    def _refusal(self, form: str, limit: str, files: int) -> str:
        if files > MOST_FILES:
            return f"{files} files: at most {MOST_FILES} expected"
        if form not in FORMS:
            return f"a capture of the form {form!r}: there are {', '.join(FORMS)}"
        if sum(not each.files.ended for each in self._running.values()) >= MOST_CAPTURES:
            return f"{MOST_CAPTURES} captures run already"
        if not limit.isdecimal() or not SMALLEST <= int(limit) <= LARGEST:
            return f"a limit of {limit} bytes: {SMALLEST} to {LARGEST} expected"
        return ""


class _Several:
    """Several captures that are shown the same messages."""

    def __init__(self, captures: Iterable[Capture]) -> None:
        self._captures = tuple(captures)

    def received(self, pieces: Sequence[Piece], fds: int) -> None:
        for each in self._captures:
            each.received(pieces, fds)

    def sent(self, pieces: Sequence[Piece], fds: int) -> None:
        for each in self._captures:
            each.sent(pieces, fds)
