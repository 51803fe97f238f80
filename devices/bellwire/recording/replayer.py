"""Replays a recording: a device goes through all that its guest did, and its answers are compared."""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from bellwire.device import PciDevice
from bellwire.errors import StateError
from bellwire.filters import DmaRead, DmaWrite, Filter, Interrupt, Stack
from bellwire.model import succession
from bellwire.model.host import Host
from bellwire.model.outside import Outside
from bellwire.recording.format import ENDS, INPUTS, PIECE, BadRecording, Body, Entry, entries, inflated
from bellwire.recording.host import ReplayHost
from bellwire.recording.inputs import Inputs, value
from bellwire.recording.recorder import NO_LEVEL
from vfio_user import IrqIndex

MOST_DIFFERENCES = 100


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
        self._inputs = self._checked = 0
        self._differences: list[Difference] = []
        self._host = ReplayHost(self._was_signalled)
        self._acts = Inputs(device, self._host, self.differ)

    def run(self) -> Outcome:
        core, device = self._core, self._device
        core.host = cast("Host", self._host)
        device.outside = _Outside(self)
        complete = False
        stack = Stack(core)
        begin = self._gather("B")
        while (entry := self._entries.ahead()) is not None and entry.kind in "TE":
            self._outputs.append(next(self._entries))  # what setup() gets
        try:
            device.setup()
            try:
                if begin is not None:
                    body = Body(begin)
                    for _ in range(min(body.number(), 2)):
                        core.reset()
                    connected = bool(body.number())
                    core.connected = self._host.open = connected
                    self._leftovers()
                    stack.add(_Checker(self))
                    complete = self._go_through()
            finally:
                stack.clear()
                device.close()
        finally:
            core.close()
        return Outcome(self._inputs, self._checked, self._differences, complete)

    def _go_through(self) -> bool:
        """Take the device through the inputs. Returns whether the recording has its end."""
        for entry in self._entries:
            if entry.kind == "Z":
                return True
            self._number = entry.number
            if entry.kind in INPUTS:
                self._input(entry)
            elif entry.kind == "I":
                self._outputs.append(entry)  # sent again since a client has come
            elif entry.kind in "NMSK":
                self._news(entry)
            elif entry.kind not in "TE":
                raise BadRecording(f"record {entry.number} of the recording is of an unknown kind, or out of place")
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
            self._outputs.append(entry)
        self.cut = True
        return None

    def _leftovers(self) -> None:
        """What the recorded device did, and this one did not."""
        for entry in self._outputs:
            if entry.kind in "dDI":
                self._checked += 1
                self._differences.append(Difference(entry.number, _told(entry), "it happens", "it does not"))
        self._outputs.clear()

    def differ(self, what: str, expected: str, got: str, event: int | None = None) -> None:
        """Note a difference."""
        if len(self._differences) < MOST_DIFFERENCES:
            self._differences.append(Difference(self._number if event is None else event, what, expected, got))

    def output(self, kind: str, key: tuple[int, ...], what: str) -> Body | None:
        """The record of the next output of this kind that begins with ``key``. What comes before it did not happen."""
        for at, entry in enumerate(self._outputs):
            if entry.kind == kind:
                body = Body(entry)
                if tuple(body.number() for _ in key) == key:
                    for _ in range(at):
                        self._skip()
                    self._outputs.popleft()
                    self._checked += 1
                    self._number = entry.number
                    return body
        if not self.cut:
            self.differ(what, "nothing", "it happens")
        return None

    def _skip(self) -> None:
        entry = self._outputs.popleft()
        if entry.kind in "dDI":
            self.differ(_told(entry), "it happens", "it does not", entry.number)

    def told(self, kind: str) -> Body | None:
        """The next answer of the outside."""
        for at, entry in enumerate(self._outputs):
            if entry.kind == kind:
                del self._outputs[at]
                return Body(entry)
        return None

    def _was_signalled(self, index: IrqIndex, vector: int) -> bool:
        for entry in self._outputs:
            if entry.kind == "I":
                body = Body(entry)
                if (body.number(), body.number()) == (index, vector):
                    body.number()
                    return bool(body.number())
        return True

    def _news(self, entry: Entry) -> None:
        body = Body(entry)
        self._host.now += body.number() / 1e6
        core = self._core
        if entry.kind == "N":
            connected = bool(body.number())
            self._host.open = False
            if not connected:
                self._host.left()
            core.join(connected)
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
        self._loading += inflated(body.number(), body.bytes(), size)
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


class _Checker(Filter, name="replay"):
    """Compares what the device does with what the recorded one did, and answers its reads of guest memory."""

    strict = True

    def __init__(self, replay: _Replay) -> None:
        super().__init__()
        self._replay = replay

    def before_dma_read(self, read: DmaRead) -> None:
        """Answer from the recording."""
        body = self._replay.output(
            "d", (read.address, read.size), f"DMA read of {read.size} bytes at {read.address:#x}"
        )
        if body is None:
            read.fail("the recording has no such read")
            return
        why = body.text()
        if why:
            read.fail(why)
        else:
            read.answer(inflated(body.number(), body.bytes(), read.size))

    def before_dma_write(self, write: DmaWrite) -> None:
        """Compare the bytes."""
        what = f"DMA write of {write.size} bytes at {write.address:#x}"
        body = self._replay.output("D", (write.address, write.size), what)
        if body is None:
            return
        why, checksum, first = body.text(), body.number(), body.bytes()
        if zlib.crc32(write.data) != checksum:
            got = write.data[: len(first)]
            self._replay.differ(
                what,
                f"{first.hex(' ')}... (CRC {checksum:08x})",
                f"{got.hex(' ')}... (CRC {zlib.crc32(write.data):08x})",
            )
        if why:
            write.fail(why)

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """Compare kind, vector and level."""
        level = NO_LEVEL if interrupt.level is None else int(interrupt.level)
        key = (int(interrupt.kind), interrupt.vector, level)
        self._replay.output("I", key, _interrupt(*key))


class _Outside(Outside):
    """The outside of the recording."""

    def __init__(self, replay: _Replay) -> None:
        self._replay = replay
        self._last = 0

    def clock(self) -> int:
        body = self._replay.told("T")
        if body is not None:
            self._last = body.number()
        return self._last

    def random(self, count: int) -> bytes:
        body = self._replay.told("E")
        found = b"" if body is None else body.bytes()
        if len(found) != count:
            if self._replay.cut and body is None:
                return bytes(count)
            self._replay.differ("random bytes", f"{len(found)} of them", f"{count} are asked for")
            return bytes(count)
        return found


def _told(entry: Entry) -> str:
    """An output in words."""
    body = Body(entry)
    if entry.kind == "I":
        return _interrupt(body.number(), body.number(), body.number())
    address, size = body.number(), body.number()
    return f"DMA {'read' if entry.kind == 'd' else 'write'} of {size} bytes at {address:#x}"


def _interrupt(kind: int, vector: int, level: int) -> str:
    name = IrqIndex(kind).name if kind in IrqIndex._value2member_map_ else f"kind {kind}"
    return f"interrupt {name} {vector}" if level == NO_LEVEL else f"INTx {'rises' if level else 'falls'}"
