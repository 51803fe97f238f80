"""The filter that records: all that comes from the guest, and what the device does because of it."""

from __future__ import annotations

import errno
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bellwire.capture.files import Files
from bellwire.declare.doorbell import IoRegion
from bellwire.device import PciDevice
from bellwire.filters import (
    Client,
    DmaRange,
    DmaRead,
    DmaWrite,
    Event,
    Filter,
    FilterError,
    Hook,
    Interrupt,
    Read,
    Reset,
    Ring,
    Write,
)
from bellwire.model.jobs import Job, Pool
from bellwire.model.outside import Outside
from bellwire.recording.format import FIRST, PIECE, Recorded, deflated, head, record

NO_LEVEL = 2
"""The level of an interrupt that has none."""


class Record(Filter, name="record"):
    """Records ``device`` to ``fd``, which it owns, up to ``limit`` bytes.

    Make it before the device is set up, so that it has what :meth:`PciDevice.setup` gets from outside. It stands behind
    all other filters, so it records what the device gets. ``named`` is what a user calls the device. If the
    file or the disk is full, the recording ends with a warning in the log, and the device goes on.
    """

    innermost = True
    kept = "it is the recording of --record, and ends with the device"

    def __init__(self, device: PciDevice, fd: int, limit: int, *, named: str = "", release: str = "") -> None:
        super().__init__()
        layout, core = device.layout, device.core
        options = {name: layout.options[name].text(value) for name, value in core.options.items()}
        about = Recorded(named or device.name, options, release)
        self.files = Files([fd], limit, head(about), record("Z"))
        self.files.ends_early = self._ends_early
        self.events = 0
        """The inputs that are in the file."""
        self._core = core
        self._depth = 0
        self._before = time.monotonic_ns()
        self._input = False
        self._jobs: dict[int, int] = {}
        self._submitted = 0
        self._counted: list[Pool] = []
        self._undo: list[Callable[[], None]] = []
        device.outside = _Outside(self._write)

    def start(self) -> None:
        """It is put in: from now on all events count."""
        core = self._core
        for _, each in self._stack or ():
            self.beside(each)
        self._write("B", core.tally.resets, int(core.connected))
        if core.connected and core.host is not None and (memory := core.host.shared_map(0, True)) is not None:
            self._write("M", 0, 1, 1, memory.start, memory.end - memory.start)  # of a guest without a VM
        taken = core.signals.taken

        def took() -> None:
            taken()
            self._write("K", self._passed(), bytes(core.state.pba))

        restore = core.state.restore

        def restored(snapshot: bytes, *, client: bool = True) -> None:
            restore(snapshot, client=client)
            self._loaded(snapshot)

        power_on = core.power_on

        def powered_on() -> None:
            power_on()
            self._write("P", self._passed())

        for part, name, method in (
            (core.signals, "taken", took),
            (core.state, "restore", restored),
            (core, "power_on", powered_on),
        ):
            setattr(part, name, method)  # as a filter is put in
            self._undo.append(partial(delattr, part, name))
        self._count_jobs()

    def beside(self, other: Filter) -> None:
        """Refuse what changes the device from inside: see :func:`check_filter`."""
        check_filter(type(self._core.device), other)

    def stop(self) -> None:
        """It is taken out: the recording ends."""
        while self._undo:
            self._undo.pop()()
        self._core.device.outside = Outside()
        self.files.close()

    def amount(self) -> str:
        """How much it has."""
        return f"{self.events:,} inputs, {self.files.written:,} bytes"

    # -- inputs

    def before_read(self, read: Read) -> None:
        """The guest reads."""
        place = read.place
        self._begin("R", place.region, place.offset, place.count)

    def after_read(self, read: Read) -> None:
        """The device has answered."""
        self._end(read, "r", b"" if read.error else read.value.to_bytes(read.place.count, "little"))

    before_config_read, after_config_read = before_read, after_read

    def before_write(self, write: Write) -> None:
        """The guest writes."""
        place = write.place
        data = write.value.to_bytes(place.count, "little")
        self._begin("W", place.region, place.offset, write.times, data)

    def after_write(self, write: Write) -> None:
        """The device has the write."""
        self._end(write)

    before_config_write, after_config_write = before_write, after_write

    def before_ring(self, ring: Ring) -> None:
        """The guest rings."""
        bell, value = ring.bell, ring.value
        at = (bell.bar.index, bell.offset, ring.offset if isinstance(bell, IoRegion) else 0)
        self._begin("G", *at, ring.count, ring.times, int(value is not None), value or 0)

    def after_ring(self, ring: Ring) -> None:
        """The ring's hook has run."""
        self._end(ring)

    def before_reset(self, reset: Reset) -> None:
        """The device is reset."""
        self._count_jobs()  # it may have been set up since the filter was put in
        self._begin("X", reset.times)

    def after_reset(self, reset: Reset) -> None:
        """The device has been reset."""
        self._end(reset)

    def before_hook(self, hook: Hook) -> None:
        """A method of the device runs. It is an input if the loop has called it."""
        if hook.depth:
            return
        jobs = _jobs(hook.arguments)
        numbers = [part for job in jobs or () for part in (self._jobs.pop(id(job), 0), _errno(job))]
        self._begin("H", hook.name.encode(), int(jobs is not None), len(jobs or ()), *numbers)

    def after_hook(self, hook: Hook) -> None:
        """The method has run."""
        if not hook.depth:
            self._end(hook)

    def client(self, client: Client) -> None:
        """A client has come or gone."""
        self._write("N", self._passed(), int(client.connected))

    def dma_map(self, range: DmaRange) -> None:
        """The client has mapped or unmapped guest memory."""
        self._write("M", self._passed(), int(range.mapped), int(range.writable), range.address, range.size)

    def _loaded(self, snapshot: bytes) -> None:
        """The client has given the device a state."""
        for at in range(0, len(snapshot), PIECE):
            piece = snapshot[at : at + PIECE]
            self._write("S", self._passed(), len(snapshot) - at - len(piece), len(piece), *deflated(piece))

    # -- what the device does

    def after_dma_read(self, read: DmaRead) -> None:
        """The device has read guest memory."""
        why = read.why or ("" if read.error is None else str(read.error))
        self._write("d", read.address, read.size, why.encode(), *deflated(b"" if why else read.data))

    def before_dma_write(self, write: DmaWrite) -> None:
        """The device writes guest memory. The filters in front may hold it back."""
        data = write.data
        self._write("D", write.address, write.size, zlib.crc32(data), data[:FIRST])

    def after_dma_write(self, write: DmaWrite) -> None:
        """The bytes are there, or are lost, or it has failed."""
        if write.why or write.error is not None:
            self._write("x", (write.why or str(write.error)).encode())

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """The device interrupts. The filters in front may hold it back, or change it."""
        self._write("I", *_signal(interrupt))

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The interrupt has passed the filters, or is lost."""
        sent = interrupt.outcome == "sent"
        if not interrupt.over and (sent or interrupt.level is None):
            self._write("i", *_signal(interrupt), interrupt.times, int(sent))

    # -- records

    def _begin(self, kind: str, *parts: int | bytes) -> None:
        """An event of the guest or the loop. It is an input unless another one has led to it."""
        if self._depth == 0:
            self.events += self._write(kind, self._passed(), *parts)
        self._depth += 1

    def _end(self, event: Event, kind: str = "e", *parts: int | bytes) -> None:
        if self._depth == 0:
            return  # it had begun when the recording was begun
        self._depth -= 1
        if self._depth == 0:
            if event.error is not None:
                kind, parts = "f", (type(event.error).__name__.encode(),)
            self._write(kind, *parts)

    def _passed(self) -> int:
        """The microseconds since the input before."""
        now = time.monotonic_ns()
        passed, self._before = now - self._before, now
        return passed // 1000

    def _write(self, kind: str, *parts: int | bytes) -> bool:
        return self.files.write(record(kind, *parts))

    def _ends_early(self, why: str) -> None:
        self._core.log.warning((self, "full"), "the recording has ended early: %s; it has %s", why, self.amount())

    def _count_jobs(self) -> None:
        for pool in self._core.pools:
            if pool not in self._counted:
                self._counted.append(pool)
                self._count(pool)

    def _count(self, pool: Any) -> None:
        """Give each job that is submitted to ``pool`` its number."""
        submit = pool.submit

        def counted(*jobs: Job) -> None:
            for job in jobs:
                self._submitted += 1
                self._jobs[id(job)] = self._submitted
            submit(*jobs)

        pool.submit = counted
        self._undo.append(lambda: delattr(pool, "submit"))


class _Outside(Outside):
    """The outside, with each answer written down."""

    def __init__(self, write: Callable[..., object]) -> None:
        self._tell = write

    def clock(self) -> int:
        now = super().clock()
        self._tell("T", now)
        return now

    def random(self, count: int) -> bytes:
        found = super().random(count)
        self._tell("E", found)
        return found


def check_filter(device: type[PciDevice], each: Filter) -> None:
    """A FilterError if ``each`` is a fault of the device's own: it strikes inside the device, so a replay lacks it."""
    if isinstance(each, device.faults):
        raise FilterError(
            f"filter {each.name} does not go with a recording: it strikes inside the device, and a replay has no such "
            "fault. Record the device without it, or with faults of accesses, DMA and interrupts"
        )


def _signal(interrupt: Interrupt) -> tuple[int, int, int]:
    """The kind, vector and level of an interrupt."""
    return int(interrupt.kind), interrupt.vector, NO_LEVEL if interrupt.level is None else int(interrupt.level)


def _jobs(arguments: Sequence[Any]) -> list[Job] | None:
    """The jobs that a callback of a pool gets; None for other callbacks."""
    if len(arguments) == 1 and isinstance(arguments[0], list) and all(isinstance(each, Job) for each in arguments[0]):
        return arguments[0]
    return None


def _errno(job: Job) -> int:
    """The errno of a job that has failed; 0 for one that has not."""
    if job.error is None:
        return 0
    return (job.error.errno if isinstance(job.error, OSError) else None) or errno.EIO
