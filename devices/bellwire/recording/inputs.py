"""The inputs of a recording: what each is called, and how a device gets it again."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.device import PciDevice
from bellwire.filters.place import Places
from bellwire.recording.format import BadRecording, Body, Entry
from bellwire.recording.host import ReplayHost

_LARGEST_ACCESS = 1 << 20
MOST_TIMES = 64
"""The most times that filters let an event happen."""
_NEWS = ("memory_changed", "wires_changed", "saving", "halted", "resumed", "restored")
"""Methods of a device that the loop calls without being asked."""

Act = Callable[[], object]
Differ = Callable[[str, str, str], None]


class Inputs:
    """The inputs of ``device``. ``differ`` gets what cannot happen again, what was expected, and what is."""

    def __init__(self, device: PciDevice, host: ReplayHost, differ: Differ) -> None:
        self._core = device.core
        self._host = host
        self._differ = differ
        self._places = Places(device.layout)
        self._bells: dict[tuple[int, int], Doorbell | IoRegion] = {}
        for plan in device.layout.bars.values():
            self._bells |= {(bell.bar.index, bell.offset): bell for bell in plan.doorbells}
            self._bells |= {(region.bar.index, region.offset): region for region in plan.ioregions}
        self._kinds = {"R": self._read, "W": self._write, "G": self._ring, "X": self._reset, "H": self._callback}
        self._number = 0

    def read(self, entry: Entry, body: Body) -> tuple[str, Act]:
        """The input in words, and what does it. ``body`` stands behind the time. A BadRecording if it cannot be."""
        self._number = entry.number
        return self._kinds[entry.kind](body)

    def _read(self, body: Body) -> tuple[str, Act]:
        region, offset, count = body.number(), body.number(), body.number()
        place = self._place(region, offset, count)
        return f"read of {place}", lambda: bytes(self._core.reader(region, offset, count).read())

    def _write(self, body: Body) -> tuple[str, Act]:
        region, offset, times, data = body.number(), body.number(), body.number(), body.bytes()
        place = self._place(region, offset, len(data))

        def act() -> None:
            for _ in range(min(times, MOST_TIMES)):
                self._core.writer(region, offset, len(data))(memoryview(data))

        return f"write of {value(data)} to {place}", act

    def _ring(self, body: Body) -> tuple[str, Act]:
        bar, offset, row, count, times, has_value, value = (body.number() for _ in range(7))
        bell = self._bells.get((bar, offset))
        if bell is None:
            what = f"ring of a doorbell at BAR{bar}+{offset:#x}"
            self._differ(what, "it rings", "the device has none there")
            return what, lambda: None
        core = self._core
        once: Callable[[], None]
        if isinstance(bell, IoRegion):
            region, size = bell, bell.bell or 1
            if row % size or row + size > bell.size:
                raise BadRecording(f"record {self._number}: {bell.name} has no doorbell at {row:#x}")
            by_value, by_event = partial(core.ioregion_write, region, row, size, value), (region, row)
            once = by_value if has_value else partial(core.ring_in_row, by_event, count)
        else:
            once = partial(core.ring_value, bell, value, count) if has_value else partial(core.ring, bell, count)

        def act() -> None:
            for _ in range(min(times, MOST_TIMES)):
                once()

        return f"ring of {bell.name}" + (f"+{row:#x}" if row else ""), act

    def _reset(self, body: Body) -> tuple[str, Act]:
        return "reset", self._core.reset

    def _callback(self, body: Body) -> tuple[str, Act]:
        name, with_jobs, count = body.text(), body.number(), body.number()
        wanted = [(body.number(), body.number()) for _ in range(count)]
        if with_jobs:
            return f"end of jobs, {name}", lambda: self._end_jobs(name, wanted)
        callback = self._host.take(name)
        if name == "restored" and self._core.waiting is not None:
            callback, self._core.waiting = self._core.waiting, None
        elif name in _NEWS:  # the recorded client has changed something
            callback = partial(self._core.call, getattr(self._core.device, name))
        if callback is None:
            self._differ(f"callback {name}", "it was asked for", "nobody has asked for it")
            return name, lambda: None
        return f"callback {name}", callback

    def _end_jobs(self, name: str, wanted: list[tuple[int, int]]) -> None:
        for pool in self._host.pools:
            numbers = [number for number, _ in wanted if number in pool.finished]
            if pool.name == name and numbers == [number for number, _ in wanted]:
                jobs = [pool.finished.pop(number) for number in numbers]
                for job, (_, number) in zip(jobs, wanted, strict=True):
                    if number and job.error is None:
                        job.error = OSError(number, os.strerror(number))
                pool.done(jobs)
                return
        self._differ(f"end of jobs, {name}", f"jobs {[number for number, _ in wanted]}", "they were not submitted")

    def _place(self, region: int, offset: int, count: int) -> str:
        """A place in words. A BadRecording if the device has no such bytes: what is recorded has passed the checks."""
        size = self._core.region_size(region)
        if count > _LARGEST_ACCESS or offset + count > size:
            raise BadRecording(
                f"record {self._number}: {count} bytes at {offset:#x} of region {region}, which has "
                f"{size:#x}: is it of another device, or of other options?"
            )
        place = self._places.at(region, offset, count)
        return f"{place.name} ({place.label})"


def value(data: bytes | object) -> str:
    """Bytes in words: a number if they are at most eight."""
    if not isinstance(data, bytes):
        return str(data)
    if len(data) <= 8:
        return f"{int.from_bytes(data, 'little'):#0{2 + 2 * len(data)}x}"
    return f"{data[:16].hex(' ')}..."
