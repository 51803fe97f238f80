"""The base of virtio devices whose rings a back end may have."""

from __future__ import annotations

from bellwire.declare.saved import Saved
from bellwire.network import TapLink
from bellwire.vhost.errors import BackendError
from bellwire.vhost.plane import Plane
from bellwire.virtio import Feature, VirtioDevice


class VhostDevice(VirtioDevice):
    """A virtio device with a :class:`Plane`. A subclass makes the plane, if it wants one, and opens it in ``setup``.

    A subclass that overrides one of the methods here calls it too.
    """

    placed = Saved(1)
    """Whether the positions of the queues are known: 0 in a snapshot that was taken while the back end was gone."""

    plane: Plane | None = None

    def open_plane(self, link: TapLink | None = None) -> None:
        """Connect to the back end, in ``setup``. Raises BackendError if there is none, and closes ``link`` then."""
        assert self.plane is not None
        self.dma.keep_files()
        try:
            self.plane.open()
        except BackendError:
            if link is not None:
                link.close()
            raise
        self.moves = True

    def offered(self) -> set[int]:
        """All feature bits on offer. With a plane, those of rings are the back end's, so it decides about them."""
        plane = self.plane
        if plane is None:
            return super().offered()
        rings = {Feature.INDIRECT_DESC, Feature.EVENT_IDX} | ({Feature.RING_PACKED} if self.packed else set())
        ours: set[int] = {Feature.VERSION_1, Feature.ACCESS_PLATFORM}
        return self.features() | ours | {bit for bit in rings if plane.features >> bit & 1}

    def started(self) -> None:
        """The driver is ready: the back end gets the rings."""
        if self.plane is not None:
            self.plane.started(sure=bool(self.placed))
            self.placed = 1

    def stopped(self) -> None:
        """A reset: the back end gives the rings back."""
        if self.plane is not None:
            self.plane.stopped()

    def saving(self) -> None:
        """The back end gives the rings back for a moment, so that the snapshot has their positions."""
        if self.plane is not None:
            self.plane.park()
            self.placed = int(self.plane.placed)

    def halted(self) -> None:
        """The back end gives the rings back for a migration. A StateError if it has gone with their positions."""
        if self.plane is not None:
            self.plane.halt()

    def recovered(self, torn: bool) -> None:
        """Another process has died with the rings: the used rings say where they go on."""
        if self.plane is not None:
            self.placed = 0
            self.plane.inherit()
        super().recovered(torn)
        if self.plane is not None:
            self.plane.settle()

    def failed(self) -> None:
        """The rings are lost."""
        if self.plane is not None:
            self.plane.failed()
        super().failed()

    def memory_changed(self) -> None:
        """The back end hears of memory that has come or gone."""
        if self.plane is None:
            super().memory_changed()
        else:
            self.plane.settle()

    def wires_changed(self) -> None:
        """The back end gets other eventfds, or pauses while bus mastering is off."""
        if self.plane is None:
            super().wires_changed()
        else:
            self.plane.rewire(super().wires_changed)

    def leaving(self) -> None:
        """The back end goes on with the rings until a successor comes."""
        if self.plane is not None:
            self.plane.leave()

    def close(self) -> None:
        """Let go of the back end."""
        if self.plane is not None:
            self.plane.close()
        super().close()
