"""A client and a loop, as the device that a worker runs sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any

from bellwire.model.jobs import Done
from bellwire.serve.boundary import Boundary
from bellwire.serve.loop import Deadline, Loop
from bellwire.serve.threads import Threads
from vfio_user import DmaFault, IrqIndex, Segment, Session, SharedMap


class ClientHost:
    """A :class:`bellwire.model.host.Host`. ``session`` is the client's, None while there is none."""

    def __init__(self, loop: Loop, boundary: Boundary) -> None:
        self.session: Session | None = None
        self._loop = loop
        self._boundary = boundary

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """Guest memory as the client has mapped it."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.segments(address, size, write)

    @property
    def by_message(self) -> bool:
        """Whether the client has mapped memory without sharing any."""
        return self.session is not None and self.session.dma.by_message

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """Maps of the client's, side by side."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.whole(address, size, write)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """A whole map of the client's."""
        return None if self.session is None else self.session.dma.shared_map(address, write)

    def dma_read(self, address: int, size: int) -> bytes:
        """DMA_READ."""
        assert self.session is not None  # segments() has been asked first
        return self.session.dma_read(address, size)

    def dma_write(self, address: int, data: memoryview) -> None:
        """DMA_WRITE."""
        assert self.session is not None
        self.session.dma_write(address, data)

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Write the client's eventfd."""
        return self.session is not None and self.session.irqs.trigger(index, vector)

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Whether the session still holds it back."""
        return self.session is None or self.session.irqs.pending(index, vector)

    def level(self, asserted: bool) -> None:
        """The INTx line."""
        if self.session is not None:
            self.session.irqs.set_level(asserted)

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """A timer whose failure is logged."""
        return self._loop.after(delay, lambda: self._boundary.call(callback))

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Device code's own descriptors on the loop; a failure is logged."""
        self._loop.watch(fd, lambda: self._boundary.call(callback))

    def unwatch_fd(self, fd: int) -> None:
        """Take one off."""
        self._loop.unwatch(fd)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Work on a thread; its failure is logged."""

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
        """Real threads."""
        return Threads(self._loop, threads, lambda jobs: self._boundary.call(done, jobs))
