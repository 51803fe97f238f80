"""What a device needs from the code that runs it: a worker with a client, or a test's guest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from bellwire.declare.doorbell import IoRegion
from bellwire.model.jobs import Done, Pool
from vfio_user import IrqIndex, Segment, SharedFile, SharedMap


class Timer(Protocol):
    """A callback that is due later. Returned by :meth:`bellwire.PciDevice.after`."""

    def cancel(self) -> None:
        """Cancel the callback. Nothing happens if it has run already."""

    @property
    def waits(self) -> bool:
        """Whether the callback has still to run."""


class Host(Protocol):
    """The other side of a device: guest memory, interrupts, timers, descriptors and threads."""

    copied: bool
    """Whether device code must copy all guest memory that it reads or writes: filters look at the copies."""

    @property
    def copier(self) -> Host:
        """The host by which :meth:`bellwire.model.dma.Dma.read` and its like copy: itself, unless filters look."""

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory that hold ``[address, address + size)``. A vfio_user.DmaFault outside it."""

    @property
    def by_message(self) -> bool:
        """Whether all guest memory that is mapped so far can only be copied, by messages."""

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of these bytes, even if they are mapped in pieces. None if they are not all shared."""

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The whole shared map that contains ``address``, or None."""

    def files(self) -> list[SharedFile]:
        """The shared maps with their files, if the device has asked for them to be kept (Dma.keep_files)."""

    def dma_read(self, address: int, size: int) -> bytes:
        """Copy guest memory that the client does not share, by a message to the client."""

    def peek(self, address: int, size: int) -> bytes:
        """Copy guest memory past all filters, whether the client shares it or not."""

    def dma_write(self, address: int, data: memoryview) -> None:
        """Write guest memory that the client does not share, by a message to the client."""

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Raise an MSI or MSI-X. False if the client has masked the vector, or has set no eventfd for it."""

    def interrupt_fd(self, index: IrqIndex, vector: int) -> int | None:
        """The eventfd that raises an MSI or MSI-X. None if the client has masked the vector, or has set none."""

    def lend(self, row: IoRegion, offset: int) -> int | None:
        """The eventfd of a doorbell of a row, whose rings somebody else takes from now on. None without a client."""

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Undo :meth:`lend`."""

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any], *, lasting: bool = False) -> None:
        """Keep a duplicate of ``fd`` for a successor, which goes on with this client if this process dies.

        A ``lasting`` one is kept for later clients, too, and for newer code.
        """

    def drop_file(self, name: str) -> None:
        """Undo :meth:`keep_file`."""

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        """The file that a process before this one has kept, and its note. The caller owns it; it is there once."""

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Whether a raised interrupt still waits for the client to take it."""

    def level(self, asserted: bool) -> None:
        """Set the level of the INTx line."""

    def regions_changed(self) -> None:
        """A region has another size now."""

    def after(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the device's thread ``delay`` seconds from now."""

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the device's thread whenever ``fd`` can be read."""

    def unwatch_fd(self, fd: int) -> None:
        """End the watch of ``fd``, if there is one."""

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work`` on another thread, then ``done`` with its result on the device's thread."""

    def pool(self, threads: int, done: Done) -> Pool:
        """Make a pool of threads. ``done`` runs on the device's thread, with the jobs that have finished."""
