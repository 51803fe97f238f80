"""What a data plane needs of a back end, be it a program or the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bellwire.vhost.errors import BackendError
from bellwire.vhost.memory import Piece
from bellwire.virtio import Feature

if TYPE_CHECKING:
    from bellwire.virtio import VirtioDevice


class Ring(NamedTuple):
    """A ring as it is handed over: its place in guest memory, and where in it the back end begins.

    ``base`` is the position of the next available buffer. Of a packed ring it has the wrap counters too ("Vring
    descriptor indices for packed virtqueues").
    """

    number: int
    size: int
    desc: int
    avail: int
    used: int
    base: int

    def parts(self, *, packed: bool) -> list[tuple[int, int]]:
        """Its parts: their addresses and sizes (§2.7, §2.8)."""
        avail, used = (4, 4) if packed else (6 + 2 * self.size, 6 + 8 * self.size)
        return [(self.desc, 16 * self.size), (self.avail, avail), (self.used, used)]


class Connected(NamedTuple):
    """A connection that another process can go on with: the socket, that of the back end's requests, and a note.

    The descriptors stay the back end's. The second one is -1 if there is none.
    """

    fd: int
    channel: int
    note: Mapping[str, Any]


class Listener(NamedTuple):
    """What the back end reports between requests. The calls come on the device's thread."""

    watch: Callable[[int, Callable[[], None]], None]
    unwatch: Callable[[int], None]
    lost: Callable[[str], None]
    """The back end has gone."""
    failed: Callable[[str], None]
    """The back end cannot go on with the rings."""
    config_changed: Callable[[], None]


class Backend(Protocol):
    """A back end. Every method may raise BackendLost, and BackendError where the back end has refused something."""

    features: int
    """The feature bits that it offers to the driver."""
    most_queues: int

    @property
    def tracks(self) -> bool:
        """Whether what is in flight was written down, so that this back end can go on where another one has crashed."""

    needs_addresses: bool
    """Whether it finds guest memory by addresses of this process, not by files."""

    @property
    def connection(self) -> Connected | None:
        """What another process needs to go on with it; None if none can."""

    def known(self, table: Sequence[Piece], rings: Sequence[int]) -> None:
        """The process before, whose connection this was, has told it of this memory, and no other, and of ``rings``."""

    def limited(self) -> AbstractContextManager[None]:
        """A limit to the time that all calls in a block take together."""

    def listen(self, listener: Listener) -> None:
        """Report to ``listener`` from now on."""

    def accept(self, features: int) -> None:
        """The driver has accepted these of the offered features."""

    def share(self, table: Sequence[Piece]) -> None:
        """Tell it of guest memory: these pieces, and no others."""

    def track(self, queues: int, size: int, *, fresh: bool) -> None:
        """Give it memory for what is in flight, if it wants any: the same as before, or a ``fresh`` one."""

    @property
    def record(self) -> tuple[int, Mapping[str, Any]] | None:
        """The file of that memory, which stays the back end's, and a note about it; None without such memory."""

    def inherit(self, fd: int, note: Mapping[str, Any]) -> None:
        """Take the :attr:`record` over that another process had. This object owns the descriptor from now on.

        Raises BackendError if it can be none.
        """

    def start(self, ring: Ring) -> None:
        """Set a ring up."""

    def kick(self, index: int, fd: int) -> None:
        """Let it take the driver's notifications of a ring from ``fd``."""

    def call(self, index: int, fd: int) -> None:
        """Let it interrupt the driver through ``fd``."""

    def enable(self, index: int, on: bool) -> None:
        """Let it use a ring that has been set up, or let it pause."""

    def stop(self, index: int) -> int:
        """End its use of a ring. Returns the base at which another :meth:`start` goes on."""

    def reset(self) -> None:
        """The driver has reset the device, and all rings are stopped."""

    def config(self, size: int) -> bytes | None:
        """The first ``size`` bytes of the device type's configuration; None if the front end has it."""

    def set_config(self, offset: int, data: bytes) -> None:
        """The driver has written to the configuration."""

    def close(self) -> None:
        """End the connection. What it has written down of what is in flight stays, for the next one."""

    def hang_up(self) -> None:
        """Close it, and end the connection even if a ledger holds it open."""

    def forget(self) -> None:
        """Drop that as well."""


Open = Callable[[Backend | None], Backend]
"""Connects to the back end, and negotiates. It gets the one before, if that has gone. Raises BackendError. It may run
on another thread, so it must not touch the device."""


def check(backend: Backend, device: VirtioDevice, needs: int, used: int) -> None:
    """Raise a BackendError if ``backend`` lacks queues, or features of those ``used`` that the driver has accepted."""
    if not backend.features >> Feature.VERSION_1 & 1:
        raise BackendError("the back end lacks VIRTIO_F_VERSION_1: it knows legacy drivers only")
    if backend.most_queues < needs:
        raise BackendError(f"the back end has {backend.most_queues} queues, and {needs} are wanted")
    lacking = device.accepted & used & ~backend.features
    if lacking and device.negotiated:
        raise BackendError(f"the new back end lacks the features {lacking:#x}, which the driver uses")
