"""Who wants to know what happens to a device: the base says nothing to nobody."""

from __future__ import annotations

from vfio_user import Capabilities


class Observer:
    """Override what is of interest. Called on the device's thread, never for single accesses or rings."""

    def connected(self, pid: int, uid: int) -> None:
        """A client has connected; its credentials as the kernel knows them."""

    def introduced(self, client: Capabilities) -> None:
        """The client has negotiated the version, and said what it can take."""

    def mapped(self, maps: int, size: int) -> None:
        """The client has mapped or unmapped memory: so many ranges with so many bytes are there now."""

    def left(self, reason: str) -> None:
        """The client has gone, or was dropped."""

    def failed(self, error: BaseException) -> None:
        """Device code raised ``error``, which has been logged as often as is good."""

    def trouble(self, text: str) -> None:
        """The guest or the device's code did something wrong; as often as it is logged."""
