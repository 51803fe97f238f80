"""What a session serves: one device, as the protocol sees it. The server implements :class:`Backend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vfio_user.constants import Command, DeviceFlags, Mechanism
from vfio_user.dma import DmaMap, DmaUnmap
from vfio_user.errors import VfioUserError
from vfio_user.io_fds import SubRegion
from vfio_user.irqs import IrqInfo
from vfio_user.regions import Region

Writer = Callable[[memoryview], None]
"""Writes the same bytes of a region each time it is called. The data is valid until it returns."""


class Late(Exception):
    """A reader raises it if its answer comes later. Meanwhile the session handles other commands.

    The session sets ``answer``, which takes the bytes, and ``fail``, which takes an error. The backend calls one of
    them, once, on the session's thread. They do nothing once the client has left.
    """

    answer: Callable[[bytes], None]
    fail: Callable[[Exception], None]


class Reader(NamedTuple):
    """Reads the same bytes of a region each time its ``read`` is called."""

    read: Callable[[], bytes | memoryview]
    """Does one read of the client's. The session uses the returned bytes before it calls anything else. May be Late."""
    plain: bool = False
    """Whether the read only looks at memory: it runs no device code, and cannot fail."""


class Backend(Protocol):
    """A device and the event loop that it runs on. The session calls all methods on its own thread.

    A method may raise a VfioUserError, whose errno goes to the client. Any other exception is reported to
    :meth:`hook_failed`, and the client gets EIO.
    """

    @property
    def device_flags(self) -> DeviceFlags:
        """The flags that DEVICE_GET_INFO answers."""

    def region(self, index: int) -> Region:
        """Region ``index`` (0 to 8), of size 0 if the device has none. It never changes. The backend owns its fd."""

    def irq(self, index: int) -> IrqInfo:
        """Interrupt kind ``index`` (0 to 4), with count 0 if the device has none. It never changes."""

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """What reads ``count`` bytes at ``offset``. The session has checked that they lie in the region."""

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """What writes ``count`` bytes at ``offset``. The session has checked that they lie in the region."""

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None:
        """Statistics: the client has read or written these bytes ``times`` times since the last call for them."""

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> Sequence[SubRegion]:
        """The sub-regions that the client may get as fds, by these mechanisms. The backend owns the fds."""

    def reset(self) -> None:
        """Reset the device, for DEVICE_RESET. Rings that have not run are discarded."""

    def before_reply(self) -> None:
        """Run the hooks of rings that have arrived: the session is about to handle a command that wants a reply."""

    def settle(self) -> None:
        """Wait until nothing that the device has begun may still use guest memory."""

    def before_unmap(self, request: DmaUnmap) -> None:
        """Stop using guest memory: the client takes some back. A view that is kept shows zeros afterwards."""

    def dma_changed(self, change: DmaMap | DmaUnmap) -> None:
        """Take note: the client has mapped or unmapped memory."""

    def irqs_changed(self, index: int) -> None:
        """Take note: the client has changed the set-up of interrupts of this kind."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the session's thread whenever ``fd`` can be read."""

    def unwatch(self, fd: int) -> None:
        """Undo :meth:`watch` for ``fd``."""

    def refused(self, error: VfioUserError) -> None:
        """Log why a command was refused: only the errno reaches the client."""

    def hook_failed(self, command: Command, error: BaseException) -> None:
        """Log that device code raised ``error`` during ``command``. The client gets EIO."""
