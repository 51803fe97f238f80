"""Replays a recording: a device goes through all that its guest did, and its answers are compared."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bellwire.device import PciDevice
from bellwire.errors import GuestError, StateError
from bellwire.filters import Stack
from bellwire.model import succession
from bellwire.recording.checker import Checker, RecordedOutside, interrupt_in_words, told
from bellwire.recording.format import ENDS, INPUTS, LARGEST_STATE, PIECE, BadRecording, Body, Entry, entries, inflated
from bellwire.recording.host import ReplayHost
from bellwire.recording.inputs import MOST_TIMES, Inputs, value
from bellwire.recording.recorder import NO_LEVEL
from vfio_user import IrqIndex

MOST_DIFFERENCES = 100
MOST_OUTPUTS = 1 << 20
"""The most records of what a device did because of one input. They are kept until it has done it again."""


class Difference(NamedTuple):
    """Where the device did not do what it did when it was recorded. ``event`` is the number of the record."""

    event: int
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"event {self.event}: {self.what}: expected {self.expected}, got {self.got}"


class Outcome(NamedTuple):
    """What became of a replay. ``complete``: the recording was ended in order, and not by a kill or a limit."""

    inputs: int
    outputs: int
    differences: list[Difference]
    complete: bool


def replay(path: Path, device: type[PciDevice], **options: Any) -> Outcome:
    """Make a ``device`` with ``options``, and take it through the recording at ``path``.

    The same file and the same device give the same outcome. At :data:`MOST_DIFFERENCES` the replay ends. A BadRecording
    if the file is none, or is damaged.
    """
    with contextlib.closing(entries(path)) as found:
        return _Replay(found, device(**options)).run()


class _Replay:
    def __init__(self, found: Iterator[Entry], device: PciDevice) -> None:
        self._entries = _Ahead(found)
        self._device, self._core = device, device.core
        self._outputs: deque[Entry] = deque()
        self.cut = False
        """Whether the file ends in the middle of what the recorded device did."""
        self._number = 0
        self._loading = bytearray()
        self._rest: int | None = None  # bytes of a state that are still to come
        self._inputs = self._checked = 0
        self._differences: list[Difference] = []
        self.heard = True
        """Whether the recorded client took the interrupt that passes now."""
        self._host = ReplayHost(lambda index, vector: self.heard)
        self._trigger, self._drive = self._core.signals.trigger, self._core.signals.drive
        self._acts = Inputs(device, self._host, self.differ)

    def run(self) -> Outcome:
        core, device = self._core, self._device
        core.host = self._host
        device.outside = RecordedOutside(self)
        complete = False
        stack = Stack(core)
        try:
            begin = self._begin()
            while (entry := self._entries.ahead()) is not None and entry.kind in "TE":
                self._keep(next(self._entries))  # what setup() gets
            device.setup()
            try:
                for _ in range(min(begin.number(), 2)):
                    core.reset()
                connected = bool(begin.number())
                core.connected = self._host.open = connected
                self._leftovers()
                stack.add(Checker(self))
                complete = self._go_through()
            finally:
                stack.clear()
                device.close()
        finally:
            core.close()
        return Outcome(self._inputs, self._checked, self._differences, complete)

    def _begin(self) -> Body:
        """Read up to the record that begins the recording. A BadRecording if there is none."""
        for entry in self._entries:
            if entry.kind == "B":
                return Body(entry)
            if entry.kind not in "TE":
                raise self._out_of_place(entry)
            self._keep(entry)
        raise BadRecording("the recording ends before the device has started")

    def _out_of_place(self, entry: Entry) -> BadRecording:
        return BadRecording(f"record {entry.number} of the recording is of an unknown kind, or out of place")

    def _go_through(self) -> bool:
        """Take the device through the inputs. Returns whether the recording has its end."""
        for entry in self._entries:
            if entry.kind == "Z":
                return True
            self._number = entry.number
            if entry.kind in INPUTS:
                self._pass()
                self._input(entry)
            elif entry.kind in "dDxIi":
                self._keep(entry)  # by a filter, or since a client has come
            elif entry.kind in "NMSKP":
                self._news(entry)
            elif entry.kind not in "TE":
                raise self._out_of_place(entry)
            if len(self._differences) >= MOST_DIFFERENCES:
                return False
        return False

    def _input(self, entry: Entry) -> None:
        """Do one input, and compare what the device does because of it."""
        self._inputs += 1
        end = self._gather(ENDS)
        body = Body(entry)
        self._host.now += body.number() / 1e6
        what, act = self._acts.read(entry, body)
        result, failed = None, ""
        try:
            result = act()
        except BadRecording:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 it is compared with that of the recording
            failed = type(error).__name__
        if end is not None:
            told = Body(end).text() if end.kind == "f" else ""
            if failed != told:
                self.differ(what, told or "no error", failed or "no error")
            elif end.kind == "r" and not failed:
                expected = Body(end).bytes()
                self._checked += 1
                if result != expected:
                    self.differ(what, value(expected), value(result or b""))
        self._leftovers()

    def _gather(self, ends: str) -> Entry | None:
        """Read what the recorded device did, up to a record of the kinds in ``ends``; None if the file ends before."""
        self._outputs.clear()
        self.cut = False
        for entry in self._entries:
            if entry.kind in ends:
                return entry
            self._keep(entry)
        self.cut = True
        return None

    def _keep(self, entry: Entry) -> None:
        if len(self._outputs) >= MOST_OUTPUTS:
            raise BadRecording(f"record {entry.number} of the recording is one of too many because of one input")
        self._outputs.append(entry)

    def _leftovers(self) -> None:
        """What the recorded device did, and this one did not."""
        while self._outputs:
            self._skip()

    def _pass(self) -> None:
        """Let the interrupts pass that filters had held back: the device does nothing for them now."""
        for entry in self._outputs:
            if entry.kind == "i":
                self._passes(entry)
        self._outputs.clear()

    def differ(self, what: str, expected: str, got: str, event: int | None = None) -> None:
        """Note a difference."""
        if len(self._differences) < MOST_DIFFERENCES:
            self._differences.append(Difference(self._number if event is None else event, what, expected, got))

    def output(self, kind: str, key: tuple[int, ...], what: str) -> Body | None:
        """The record of the next output of this kind that begins with ``key``. What comes before it did not happen."""
        for entry in self._outputs:
            if entry.kind == kind:
                body = Body(entry)
                if tuple(body.number() for _ in key) == key:
                    while self._outputs[0] is not entry:
                        self._skip()
                    self._outputs.popleft()
                    self._checked += 1
                    self._number = entry.number
                    return body
        if not self.cut:
            self.differ(what, "nothing", "it happens")
        return None

    def outcome(self, number: int | None = None) -> Body | None:
        """What became at once of the output that was taken last, or of record ``number``; None if nothing is told."""
        behind = (self._number if number is None else number) + 1
        if self._outputs and self._outputs[0].kind in "xi" and self._outputs[0].number == behind:
            return Body(self._outputs.popleft())
        return None

    def _skip(self) -> None:
        entry = self._outputs.popleft()
        if entry.kind in "dDI":
            self._checked += 1
            self.differ(told(entry), "it happens", "it does not", entry.number)
            self.outcome(entry.number)
        elif entry.kind == "i":
            self._passes(entry)

    def _passes(self, entry: Entry) -> None:
        """An interrupt that a filter had held back reaches the client."""
        body = Body(entry)
        kind, vector, level, times, sent = (body.number() for _ in range(5))
        self.heard = bool(sent)
        if level != NO_LEVEL:
            self._drive(bool(level))
            return
        signals = self._core.signals
        vectors = {int(IrqIndex.MSIX): signals.msix, int(IrqIndex.MSI): signals.msi}.get(kind)
        if vectors is None or vector >= len(vectors):
            raise BadRecording(f"record {entry.number}: the device has no {interrupt_in_words(kind, vector, level)}")
        with contextlib.suppress(GuestError):  # bus mastering is off
            for _ in range(min(times, MOST_TIMES)):
                self._trigger(IrqIndex(kind), vector)

    def told(self, kind: str) -> Body | None:
        """The next answer of the outside."""
        for at, entry in enumerate(self._outputs):
            if entry.kind == kind:
                del self._outputs[at]
                return Body(entry)
        return None

    def _news(self, entry: Entry) -> None:
        body = Body(entry)
        self._host.now += body.number() / 1e6
        core = self._core
        if entry.kind in "KP":
            self._pass()
        if entry.kind == "P":
            core.power_on()
        elif entry.kind == "N":
            connected = bool(body.number())
            self._host.open = False
            if not connected:
                self._host.left()
            core.join(connected)
            self._pass()
        elif entry.kind == "M":
            mapped, writable, address, size = (body.number() for _ in range(4))
            self._host.mapped(address, size, mapped=bool(mapped), writable=bool(writable))
            core.dma.changed()
        elif entry.kind == "S":
            self._state(body)
        else:
            pending = body.bytes()
            if len(pending) == len(core.state.pba):
                core.state.pba[:] = pending

    def _state(self, body: Body) -> None:
        """Give the device a state, as the client did. It goes on with it at the callback ``restored``."""
        rest, size = body.number(), body.number()
        if size > PIECE:
            raise BadRecording(f"a recording is damaged: {size} bytes of a state in a record, at most {PIECE} can be")
        if size + rest > LARGEST_STATE or self._rest not in (None, size + rest):
            raise BadRecording(f"a recording is damaged: {size} bytes of a state in a record, and {rest} behind it")
        self._loading += inflated(body.number(), body.bytes(), size)
        self._rest = rest or None
        if not rest:
            snapshot, self._loading = bytes(self._loading), bytearray()
            try:
                succession.load(self._core, snapshot)
            except StateError as error:
                self.differ("state", "it is taken", str(error))


class _Ahead:
    """An iterator of records that can be looked at before they are taken."""

    def __init__(self, found: Iterator[Entry]) -> None:
        self._found = found
        self._next: Entry | None = None

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> Entry:
        entry, self._next = self._next, None
        return next(self._found) if entry is None else entry

    def ahead(self) -> Entry | None:
        """The next record; None at the end."""
        if self._next is None:
            self._next = next(self._found, None)
        return self._next
