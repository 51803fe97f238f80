"""What a session serves: one device, as the protocol sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vfio_user.constants import Command, DeviceFlags, Mechanism
from vfio_user.errors import VfioUserError
from vfio_user.io_fds import SubRegion
from vfio_user.irqs import IrqInfo
from vfio_user.regions import Region

Writer = Callable[[memoryview], None]
"""How the same bytes of a region are written again and again; the data is valid until it returns."""


class Reader(NamedTuple):
    """How the same bytes of a region are read again and again."""

    read: Callable[[], bytes | memoryview]
    """Each call is one read by the client; what it gives is used at once."""
    plain: bool = False
    """Whether it only looks at memory: no device code runs, and nothing can fail."""


class Backend(Protocol):
    """A device and the event loop that it runs on. All of it is called on the session's thread."""

    @property
    def device_flags(self) -> DeviceFlags:
        """DEVICE_GET_INFO's flags."""

    def region(self, index: int) -> Region:
        """Region 0 to 8, size 0 where there is none. It never changes."""

    def irq(self, index: int) -> IrqInfo:
        """Interrupt index 0 to 4, count 0 where there is none. It never changes."""

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """What reads ``count`` bytes; the range is known to lie in the region."""

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """What writes ``count`` bytes; the range is known to lie in the region."""

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None:
        """These bytes were read or written so often since this was last said of them."""

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> Sequence[SubRegion]:
        """What may be handed over as fds, by these mechanisms. The fds stay the backend's."""

    def reset(self) -> None:
        """DEVICE_RESET."""

    def before_reply(self) -> None:
        """A command that wants a reply is about to be handled: rings that came before it go first."""

    def before_unmap(self) -> None:
        """The client is about to take memory back: let go of it, since it is zeros to whoever keeps a view."""

    def dma_changed(self) -> None:
        """The client has mapped or unmapped memory."""

    def irqs_changed(self, index: int) -> None:
        """The client has set interrupts of this kind."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the session's thread whenever ``fd`` can be read."""

    def unwatch(self, fd: int) -> None:
        """Stop that."""

    def refused(self, error: VfioUserError) -> None:
        """A command was refused; only the errno reaches the client, so that this is the place to say why."""

    def hook_failed(self, command: Command, error: BaseException) -> None:
        """The device's own code raised; the client is told EIO."""
