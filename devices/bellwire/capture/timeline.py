"""A timeline: rings, methods of the device, DMA and interrupts, for Perfetto (https://ui.perfetto.dev) and Chrome.

The file is JSON in the Trace Event Format, one event a line. Its reader takes a list whose end is missing, so it can
read what a killed process has left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from bellwire.capture.events import OF_A_CAPTURE
from bellwire.capture.files import Files
from bellwire.filters import Client, DmaRead, DmaWrite, Filter, Hook, Interrupt, Reset, Ring

TRACKS = {"guest": 1, "device code": 2, "DMA": 3, "interrupts": 4}
"""The tracks, by the name that the reader shows. Their numbers are the format's thread ids."""
_GUEST, _CODE, _DMA, _INTERRUPTS = TRACKS.values()
_TAIL = b"\n]\n"


class Timeline(Filter, name="timeline"):
    """Writes to ``fds`` in turn, which it owns, each of at most ``limit`` bytes: see :class:`Files`.

    ``clock`` gives nanoseconds.
    """

    kept = OF_A_CAPTURE

    def __init__(
        self, device: str, fds: Sequence[int], limit: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__()
        self._clock = clock
        self._process = os.getpid()
        self._open: list[dict[str, Any]] = []
        self.events = 0
        self.messages = 0
        named = [{"name": "process_name", "ph": "M", "pid": self._process, "args": {"name": f"Bellwire: {device}"}}]
        named += [
            {"name": "thread_name", "ph": "M", "pid": self._process, "tid": number, "args": {"name": name}}
            for name, number in TRACKS.items()
        ]
        self.files = Files(fds, limit, b"[\n" + b",\n".join(map(_line, named)), _TAIL)
        self._turn = self.files.turns
        self.filter = self
        """What is put in: a capture of messages has it, too."""

    def amount(self) -> str:
        """How much it has."""
        return f"{self.events:,} events, {self.files.written:,} bytes"

    def before_ring(self, ring: Ring) -> None:
        """A doorbell was rung."""
        told = {"count": ring.count, "by": ring.mechanism}
        self._instant(ring.name, _GUEST, told if ring.value is None else told | {"value": hex(ring.value)})

    def before_hook(self, hook: Hook) -> None:
        """A method of the device begins."""
        begun = self._event(hook.name, "B", _CODE, {"arguments": [_shown(each) for each in hook.arguments]})
        self._write(begun)
        self._open.append(begun)

    def after_hook(self, hook: Hook) -> None:
        """The method ends."""
        if not self._open:
            return  # it had begun when the timeline was put in
        told = {} if hook.error is None else {"raised": _shown(hook.error)}
        self._write(self._event(hook.name, "E", _CODE, told))
        self._open.pop()

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device has interrupted."""
        name = f"{interrupt.kind.name} {interrupt.vector}"
        level = {} if interrupt.level is None else {"level": interrupt.level}
        self._instant(name, _INTERRUPTS, {"outcome": interrupt.outcome} | level)

    def before_reset(self, _: Reset) -> None:
        """The device is reset."""
        self._instant("reset", _GUEST, {})

    def client(self, client: Client) -> None:
        """A client has come or gone."""
        self._instant("client comes" if client.connected else "client leaves", _GUEST, {})

    def _instant(self, name: str, track: int, arguments: dict[str, Any]) -> None:
        self._write(self._event(name, "i", track, arguments) | {"s": "t"})

    def _event(self, name: str, phase: str, track: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """An event; times are in microseconds."""
        now = self._clock() / 1000
        return {"name": name, "ph": phase, "ts": now, "pid": self._process, "tid": track, "args": arguments}

    def _write(self, event: dict[str, Any]) -> None:
        done = self.files.write(b",\n" + _line(event))
        if self.files.turns != self._turn:  # a new file: what is open began before it
            self._turn = self.files.turns
            for each in self._open:
                self.files.write(b",\n" + _line(each))
        self.events += done


class DmaTimeline(Timeline, name="timeline"):
    """A timeline with the device's DMA. Memory is copied for it, so some devices take slower ways."""

    def after_dma_read(self, read: DmaRead) -> None:
        """The device has read guest memory."""
        self._instant("read", _DMA, _range(read))

    def after_dma_write(self, write: DmaWrite) -> None:
        """The device has written guest memory."""
        self._instant("write", _DMA, _range(write))


def _range(event: DmaRead | DmaWrite) -> dict[str, Any]:
    return {"address": hex(event.address), "size": event.size} | ({"failed": event.why} if event.why else {})


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return repr(value)[:80]
