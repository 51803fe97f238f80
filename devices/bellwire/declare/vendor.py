"""Capabilities whose contents a device's own specification lays down (PCI 3.0 §6.7, capability 09h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Hook = TypeVar("Hook", bound=Callable[[Any, int, int], None])

HEADER = 3
"""Bytes before the body: number, pointer to the next capability, length of it all."""
LARGEST = 0xFF - HEADER


class VendorCapability(Declared):
    """``where = VendorCapability(body)``: ``body`` is what follows the length byte, and its value after a reset.

    ``writable`` has a one for each bit that a guest may change, and may be shorter than ``body``. On an instance
    it is a writable memoryview of the body as it stands. Capabilities lie in config space in the order in which
    they are declared.
    """

    def __init__(self, body: bytes, *, writable: bytes = b"") -> None:
        self.body = body
        self.writable = writable.ljust(len(body), b"\0")
        self.size = len(body)

    def check(self, where: str) -> None:
        """Refuse what the length byte cannot say."""
        if not 1 <= self.size <= LARGEST:
            self.refuse(where, f"the body of a capability has 1 to {LARGEST} bytes, not {self.size}")
        if len(self.writable) > self.size:
            self.refuse(where, f"writable has {len(self.writable)} bytes, and the body only {self.size}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> VendorCapability: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> memoryview: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> VendorCapability | memoryview:
        if device is None:
            return self
        start = device.core.config.vendor[self]
        return device.core.state.config[start : start + self.size]

    def read(self, hook: Hook) -> Hook:
        """Run ``hook(self, offset, size)`` before a guest reads those bytes of the body: it may change them first."""
        return mark(hook, "read", self)

    def write(self, hook: Hook) -> Hook:
        """Run ``hook(self, offset, size)`` after a guest's write to those bytes of the body has been stored."""
        return mark(hook, "write", self)
