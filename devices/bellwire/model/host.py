"""What a device needs from whatever runs it: a worker with a client, or a test with a pretended guest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from bellwire.model.jobs import Done, Pool
from vfio_user import IrqIndex, Segment, SharedMap


class Timer(Protocol):
    """Something due later; what :meth:`bellwire.PciDevice.after` returns."""

    def cancel(self) -> None:
        """Forget it, if it has not run yet."""


class Host(Protocol):
    """The far side of a device: guest memory, interrupts, time."""

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory behind ``[address, address + size)``; vfio_user.DmaFault outside it."""

    @property
    def by_message(self) -> bool:
        """Whether guest memory can be had by messages alone, as far as is known by now."""

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of the bytes there, in however many pieces they are; None where they are not all shared."""

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The whole stretch around ``address`` that is shared with us, if there is one."""

    def dma_read(self, address: int, size: int) -> bytes:
        """Ask the client for guest memory that it has not shared."""

    def dma_write(self, address: int, data: memoryview) -> None:
        """Have the client write guest memory that it has not shared."""

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Raise an MSI or MSI-X; False when nobody could be told yet (masked, or no eventfd)."""

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Whether a raised interrupt still waits for the client to take it."""

    def level(self, asserted: bool) -> None:
        """Drive the INTx line."""

    def after(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the device's thread ``delay`` seconds from now."""

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the device's thread whenever ``fd`` can be read."""

    def unwatch_fd(self, fd: int) -> None:
        """No longer."""

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work`` on another thread, then ``done`` with its result on the device's thread."""

    def pool(self, threads: int, done: Done) -> Pool:
        """Threads for jobs; ``done`` gets those that have finished, on the device's thread."""
