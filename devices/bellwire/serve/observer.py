"""Observers: they hear of a device's clients and errors. The base class ignores everything."""

from __future__ import annotations

from vfio_user import Capabilities


class Observer:
    """Override the methods that you need. They run on the device's thread, and never for single accesses or rings."""

    def connected(self, pid: int, uid: int) -> None:
        """A client has connected. ``pid`` and ``uid`` come from the kernel (SO_PEERCRED)."""

    def introduced(self, client: Capabilities) -> None:
        """The client has negotiated the version, and given its capabilities."""

    def mapped(self, maps: int, size: int) -> None:
        """The client has mapped or unmapped memory. There are now ``maps`` ranges, with ``size`` bytes together."""

    def left(self, reason: str) -> None:
        """The client has disconnected or was dropped; ``reason`` says why."""

    def failed(self, error: BaseException) -> None:
        """Device code raised ``error``. It has been logged already, at a limited rate."""

    def trouble(self, text: str) -> None:
        """The guest or device code did something wrong. Called whenever that is logged, at a limited rate."""
