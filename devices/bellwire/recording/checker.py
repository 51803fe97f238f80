"""What stands between a device that is replayed and the world: it compares what the device does, and answers it."""

from __future__ import annotations

import zlib
from typing import Protocol

from bellwire.filters import DmaRead, DmaWrite, Filter, Interrupt
from bellwire.model.outside import Outside
from bellwire.recording.format import BadRecording, Body, Entry, inflated
from bellwire.recording.inputs import MOST_TIMES
from bellwire.recording.recorder import NO_LEVEL
from vfio_user import IrqIndex


class Replay(Protocol):
    """The replay that it belongs to."""

    heard: bool
    """Whether the recorded client took the interrupt that passes now."""
    cut: bool
    """Whether the file ends in the middle of what the recorded device did."""

    def output(self, kind: str, key: tuple[int, ...], what: str) -> Body | None:
        """The record of the next output of this kind that begins with ``key``. What comes before it did not happen."""

    def outcome(self) -> Body | None:
        """What became at once of the output that was taken last; None if nothing is told."""

    def told(self, kind: str) -> Body | None:
        """The next answer of the outside."""

    def differ(self, what: str, expected: str, got: str) -> None:
        """Note a difference."""


class Checker(Filter, name="replay"):
    """Compares what the device does with what the recorded one did, and answers its reads of guest memory."""

    strict = True

    def __init__(self, replay: Replay) -> None:
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
        checksum, first = body.number(), body.bytes()
        if zlib.crc32(write.data) != checksum:
            got = write.data[: len(first)]
            self._replay.differ(
                what,
                f"{first.hex(' ')}... (CRC {checksum:08x})",
                f"{got.hex(' ')}... (CRC {zlib.crc32(write.data):08x})",
            )
        failed = self._replay.outcome()
        if failed is not None:
            write.fail(failed.text())

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Compare kind, vector and level. Lose it if the filters had lost it, or had held it back."""
        level = NO_LEVEL if interrupt.level is None else int(interrupt.level)
        key = (int(interrupt.kind), interrupt.vector, level)
        self._replay.heard = True
        if self._replay.output("I", key, interrupt_in_words(*key)) is None:
            return
        passed = self._replay.outcome()
        if passed is None:
            interrupt.drop()
            return
        _, vector, _, times, sent = (passed.number() for _ in range(5))
        interrupt.times = min(times, MOST_TIMES)
        self._replay.heard = bool(sent)
        try:
            interrupt.vector = vector
        except ValueError as error:
            raise BadRecording(f"a recording is damaged: {error}") from None


class RecordedOutside(Outside):
    """The outside of the recording."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._last = 0

    def clock(self) -> int:
        """The time that it told then."""
        body = self._replay.told("T")
        if body is not None:
            self._last = body.number()
        return self._last

    def random(self, count: int) -> bytes:
        """The bytes that it gave then."""
        body = self._replay.told("E")
        found = b"" if body is None else body.bytes()
        if len(found) != count:
            if self._replay.cut and body is None:
                return bytes(count)
            self._replay.differ("random bytes", f"{len(found)} of them", f"{count} are asked for")
            return bytes(count)
        return found


def told(entry: Entry) -> str:
    """An output in words."""
    body = Body(entry)
    if entry.kind == "I":
        return interrupt_in_words(body.number(), body.number(), body.number())
    address, size = body.number(), body.number()
    return f"DMA {'read' if entry.kind == 'd' else 'write'} of {size} bytes at {address:#x}"


def interrupt_in_words(kind: int, vector: int, level: int) -> str:
    """An interrupt in words."""
    name = IrqIndex(kind).name if kind in IrqIndex._value2member_map_ else f"kind {kind}"
    return f"interrupt {name} {vector}" if level == NO_LEVEL else f"INTx {'rises' if level else 'falls'}"
