"""What a device needs while a recording is replayed: no guest, no threads, and no time but the recording's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from bellwire.model.jobs import Done, Job
from vfio_user import (
    DmaFault,
    DmaFlags,
    DmaMap,
    DmaTable,
    DmaUnmap,
    IrqIndex,
    Segment,
    SharedFile,
    SharedMap,
    VfioUserError,
)

if TYPE_CHECKING:
    from bellwire.declare.doorbell import IoRegion


class Pending:
    """A callback that the loop of the recorded device ran, or would have run."""

    def __init__(self, due: float, order: int, callback: Callable[[], None]) -> None:
        self.due = due, order
        self.name = getattr(callback, "__name__", "")
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """As :meth:`bellwire.model.host.Timer.cancel`."""
        self.cancelled = True

    @property
    def waits(self) -> bool:
        """As :attr:`bellwire.model.host.Timer.waits`."""
        return not self.cancelled


class ReplayHost:
    """A :class:`bellwire.model.host.Host`. ``signalled`` tells whether the recorded client took an interrupt."""

    by_message = copied = False

    def __init__(self, signalled: Callable[[IrqIndex, int], bool]) -> None:
        self.now = 0.0
        self.open = False
        """Whether the device may use all of guest memory: nothing is known of its maps."""
        self.pools: list[ReplayPool] = []
        self._signalled = signalled
        self._maps = DmaTable(pgsizes=1)
        self._pending: list[Pending] = []
        self._watched: dict[int, Callable[[], None]] = {}
        self._order = 0
        self._jobs = 0

    def take(self, name: str) -> Callable[[], None] | None:
        """The callback of that name that is due first: a timer, else a watched descriptor. It will not run again."""
        found = min(
            (each for each in self._pending if each.name == name and not each.cancelled),
            key=lambda each: each.due,
            default=None,
        )
        if found is not None:
            self._pending.remove(found)
            return found.callback
        return next((each for each in self._watched.values() if getattr(each, "__name__", "") == name), None)

    def job(self) -> int:
        """The number of the next job that is submitted, to any pool."""
        self._jobs += 1
        return self._jobs

    def mapped(self, address: int, size: int, *, mapped: bool, writable: bool) -> None:
        """The client has mapped or unmapped memory."""
        self.open = False
        with contextlib.suppress(VfioUserError):
            if mapped:
                flags = DmaFlags.READ | (DmaFlags.WRITE if writable else DmaFlags(0))
                self._maps.map(DmaMap(flags, 0, address, size), None)
            elif size == 0:
                self._maps.clear()
            else:
                self._maps.unmap(self._maps.inside(DmaUnmap(address, size)))

    def left(self) -> None:
        """The client has left, and its memory with it."""
        self._maps.clear()

    # -- bellwire.model.host.Host

    @property
    def copier(self) -> Self:
        """Itself: no filter looks."""
        return self

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory; none of them is shared."""
        return (Segment(address, size, None),) if self.open else self._maps.segments(address, size, write)

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """None: no memory is shared."""

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """None: no memory is shared."""

    def files(self) -> list[SharedFile]:
        """None: no memory is shared."""
        return []

    def dma_read(self, address: int, size: int) -> bytes:
        """Fail: the recording has answered already, or cannot."""
        raise DmaFault(address, size, "the recording has no such read")

    def peek(self, address: int, size: int) -> bytes:
        """Zeros: what a peek found does not count, so the recording lacks it."""
        return bytes(size)

    def dma_write(self, address: int, data: memoryview) -> None:
        """Do nothing: there is no memory. The recording has been looked at already."""

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Whether the recorded client took it."""
        return self._signalled(index, vector)

    def interrupt_fd(self, index: IrqIndex, vector: int) -> int | None:
        """None: nobody listens to an eventfd."""

    def lend(self, row: IoRegion, offset: int) -> int | None:
        """None: nobody rings an eventfd."""

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Do nothing: nothing is lent."""

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any], *, lasting: bool = False) -> None:
        """Do nothing: a replay has no successor."""

    def drop_file(self, name: str) -> None:
        """Do nothing: nothing is kept."""

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        """None: a recording begins with the first process of a device."""

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """False: the recording says when an interrupt is taken."""
        return False

    def level(self, asserted: bool) -> None:
        """Do nothing: the change of the level is an event."""

    def regions_changed(self) -> None:
        """Do nothing: each access asks for the size."""

    def after(self, delay: float, callback: Callable[[], None]) -> Pending:
        """Keep a timer until the recording says that it ran."""
        self._order += 1
        timer = Pending(self.now + max(0.0, delay), self._order, callback)
        self._pending.append(timer)
        return timer

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Keep the callback until the recording says that it ran."""
        self._watched[fd] = callback

    def unwatch_fd(self, fd: int) -> None:
        """End the watch."""
        self._watched.pop(fd, None)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work`` now, and ``done`` when the recording says that it ran."""
        result = work()

        def finished() -> None:
            done(result)

        finished.__name__ = getattr(done, "__name__", "finished")
        self.after(0, finished)

    def pool(self, threads: int, done: Done) -> ReplayPool:
        """A pool whose jobs run at once. Their results come when the recording says so."""
        pool = ReplayPool(self, done)
        self.pools.append(pool)
        return pool


class ReplayPool:
    """A :class:`bellwire.model.jobs.Pool` without threads."""

    def __init__(self, host: ReplayHost, done: Done) -> None:
        self._host = host
        self.done = done
        self.name = getattr(done, "__name__", "")
        self.finished: dict[int, Job] = {}
        """The jobs whose results were not handed over, by number."""

    def submit(self, *jobs: Job) -> None:
        """Run the jobs."""
        for job in jobs:
            job.run()
            self.finished[self._host.job()] = job

    @property
    def busy(self) -> bool:
        """Whether the recording has still to say when some jobs have ended."""
        return bool(self.finished)

    def finish(self) -> bool:
        """All jobs have run. Returns whether the recording has still to say when some have ended."""
        return bool(self.finished)

    def settle(self) -> None:
        """Forget the results."""
        self.finished.clear()

    def close(self) -> None:
        """Forget the results. There are no threads."""
        self.settle()
