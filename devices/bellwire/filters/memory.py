"""Guest memory, as the device gets it while filters look at its DMA."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from bellwire.errors import GuestError
from bellwire.filters.arrivals import Passage
from bellwire.filters.chain import Chain
from bellwire.filters.events import DmaRead, DmaView, DmaWrite
from vfio_user import DmaFault, IrqIndex, Segment, SharedMap

if TYPE_CHECKING:
    from bellwire.filters.outgoing import Interrupts
    from bellwire.filters.stack import Stack
    from bellwire.model.host import Host


class FilteredHost:
    """A :class:`bellwire.model.host.Host` in front of the real one, which notes whether interrupts are heard."""

    def __init__(self, host: Host, interrupts: Interrupts) -> None:
        self._host = host
        self._interrupts = interrupts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Raise an interrupt, and note whether anybody listens."""
        self._interrupts.heard = self._host.signal(index, vector)
        return self._interrupts.heard


class CopyingHost(FilteredHost):
    """It shares no memory, so that all DMA is copied by :meth:`dma_read` and :meth:`dma_write`: the filters' way."""

    copied = True

    def __init__(self, stack: Stack, host: Host, interrupts: Interrupts, reads: Chain, writes: Chain) -> None:
        super().__init__(host, interrupts)
        self._stack = stack
        self._reads = reads
        self._writes = writes

    @property
    def copier(self) -> Host:
        """Itself."""
        return cast("Host", self)

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """One piece, which can only be copied."""
        for _ in self._host.segments(address, size, write):  # a DmaFault for memory that the guest lacks
            pass
        return (Segment(address, size, None),)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """None: it shares no memory."""

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """None: it shares no memory."""

    def dma_read(self, address: int, size: int) -> bytes:
        """Copy guest memory, by way of the filters."""
        event = DmaRead(address, size)

        def act() -> None:
            event.data = self._host.peek(address, size)

        self._reads.run(event, act)
        if event.why:
            raise DmaFault(address, size, event.why)
        return event.data

    def dma_write(self, address: int, data: memoryview) -> None:
        """Write guest memory, by way of the filters."""
        event = DmaWrite(address, bytes(data))

        def act() -> None:
            self._store(address, memoryview(event.data))

        done = self._stack.departures.admit(Passage(self._writes.steps(event, act), event.size, self._late))
        if done and event.why:
            raise DmaFault(address, event.size, event.why)

    def _store(self, address: int, data: memoryview) -> None:
        for part in list(self._host.segments(address, len(data), True)):
            piece = data[part.address - address : part.address - address + part.size]
            if part.view is None:
                self._host.dma_write(part.address, piece)
            else:
                part.view[:] = piece

    def _late(self, error: Exception | None) -> None:
        if isinstance(error, DmaFault):
            error = GuestError(f"a DMA write that a filter has delayed: {error}")
        self._stack.ended(error)


class ViewingHost(FilteredHost):
    """It shares memory as the real one does, and tells filters of the views that it gives. ``copier`` makes copies."""

    def __init__(self, host: Host, interrupts: Interrupts, copier: Host, told: Callable[[DmaView], None]) -> None:
        super().__init__(host, interrupts)
        self.copier = copier
        self._told = told

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory."""
        parts = list(self._host.segments(address, size, write))
        if size and all(part.view is not None for part in parts):
            self._told(DmaView(address, size, writable=write))
        return parts

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The whole shared map that contains ``address``."""
        found = self._host.shared_map(address, write)
        if found is not None:
            self._told(DmaView(found.start, found.end - found.start, writable=write))
        return found

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of these bytes."""
        view = self._host.whole(address, size, write)
        if view is not None:
            self._told(DmaView(address, size, writable=write))
        return view
