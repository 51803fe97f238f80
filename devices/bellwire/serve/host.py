"""The host of a device that a worker runs: its client and its loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Self

from bellwire.declare.doorbell import IoRegion
from bellwire.model.jobs import Done
from bellwire.serve.boundary import Boundary
from bellwire.serve.doorbell_fds import DoorbellFds
from bellwire.serve.loop import Deadline
from bellwire.serve.remembered import Remembered
from bellwire.serve.standstill import Standstill
from bellwire.serve.threads import Threads
from vfio_user import DmaFault, Estate, IrqIndex, Kept, Ledger, Segment, Session, SharedFile, SharedMap


class ClientHost:
    """A :class:`bellwire.model.host.Host`. ``session`` and ``doorbell_fds`` are the client's: None without a client."""

    copied = False

    def __init__(self, loop: Standstill, boundary: Boundary, ledger: Ledger) -> None:
        self.session: Session | None = None
        self.doorbell_fds: DoorbellFds | None = None
        self._loop = loop
        self._boundary = boundary
        self._ledger = ledger
        self.lasting = Remembered()
        """Files of device code that belong to its state."""
        self.estate = Estate()
        """What a process before this one has kept, while its successor takes over."""

    @property
    def copier(self) -> Self:
        """Itself: no filter looks."""
        return self

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory, as the client has mapped them."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.segments(address, size, write)

    @property
    def by_message(self) -> bool:
        """Whether the client has mapped memory but shares none of it."""
        return self.session is not None and self.session.dma.by_message

    @property
    def may_call(self) -> bool:
        """Whether device code can run before a command is answered: it waits for no DMA, and needs none by message.

        A client that waits for the answer may be deaf to messages (:mod:`vfio_user.dma_requests`).
        """
        session = self.session
        return session is not None and not session.dma_requests.outstanding and not session.dma.by_message

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of these bytes, even across several maps of the client."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.whole(address, size, write)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The whole shared map that contains ``address``, or None."""
        return None if self.session is None else self.session.dma.shared_map(address, write)

    def files(self) -> list[SharedFile]:
        """The shared maps whose files the session keeps."""
        return [] if self.session is None else self.session.dma.files()

    def dma_read(self, address: int, size: int) -> bytes:
        """Copy guest memory by a DMA_READ message."""
        assert self.session is not None  # segments() has been called first, and needs a session
        return self.session.dma_read(address, size)

    def peek(self, address: int, size: int) -> bytes:
        """Copy guest memory, in place or by messages."""
        return b"".join(
            self.dma_read(part.address, part.size) if part.view is None else bytes(part.view)
            for part in self.segments(address, size, False)
        )

    def dma_write(self, address: int, data: memoryview) -> None:
        """Write guest memory by a DMA_WRITE message."""
        assert self.session is not None
        self.session.dma_write(address, data)

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Write to the eventfd that the client has set for the vector. False without one."""
        return self.session is not None and self.session.irqs.trigger(index, vector)

    def interrupt_fd(self, index: IrqIndex, vector: int) -> int | None:
        """The eventfd that the client has set for the vector, unless it is masked."""
        return None if self.session is None else self.session.irqs.fd(index, vector)

    def lend(self, row: IoRegion, offset: int) -> int | None:
        """The eventfd of a doorbell of a row, which is watched here no more."""
        return None if self.doorbell_fds is None else self.doorbell_fds.lend(row, offset)

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Watch the doorbell again."""
        if self.doorbell_fds is not None:
            self.doorbell_fds.take_back(row, offset)

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any], *, lasting: bool = False) -> None:
        """Tell the ledger of a file of device code."""
        entry = Kept(f"file {name}", note, (fd,))
        if lasting:
            self.lasting.keep(entry)
        if self.session is not None:
            self._ledger.keep(entry)

    def drop_file(self, name: str) -> None:
        """Let the ledger forget it."""
        self.lasting.drop(f"file {name}")
        if self.session is not None:
            self._ledger.drop(f"file {name}")

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        """A file that the ledger of the process before has kept."""
        key = f"file {name}"
        note, fds = self.estate.note(key), self.estate.take(key)
        return (fds[0], note) if fds else None

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Whether the session still holds the interrupt back."""
        return self.session is None or self.session.irqs.pending(index, vector)

    def level(self, asserted: bool) -> None:
        """Set the level of the INTx line."""
        if self.session is not None:
            self.session.irqs.set_level(asserted)

    def regions_changed(self) -> None:
        """Let the session ask for all regions again."""
        if self.session is not None:
            self.session.regions_changed()

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """Set a timer on the loop. An error of the callback is logged."""
        return self._loop.after(delay, lambda: self._boundary.call(callback))

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch a descriptor of device code on the loop. An error of the callback is logged."""
        self._loop.watch(fd, lambda: self._boundary.call(callback))

    def unwatch_fd(self, fd: int) -> None:
        """End the watch of ``fd``, if there is one."""
        self._loop.unwatch(fd)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work`` on a thread. An error of it is logged, and ``done`` does not run."""

        def finished(future: Future[Any]) -> None:
            try:
                result = future.result()
            except CancelledError:
                return
            except (Exception, SystemExit) as error:  # noqa: BLE001 as in Boundary.call()
                self._boundary.failed("background work", error)
                return
            self._boundary.call(done, result)

        self._loop.background(work, finished)

    def pool(self, threads: int, done: Done) -> Threads:
        """Make a pool of threads whose results arrive on the loop."""
        return Threads(self._loop, threads, lambda jobs: self._boundary.call(done, jobs))
