"""Vendor-specific capabilities: the specification of the device defines their contents (PCI 3.0 §6.7, 09h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Hook = TypeVar("Hook", bound=Callable[[Any, int, int], None])

HEADER = 3
"""Bytes before the body: capability number, pointer to the next capability, length of the whole."""
LARGEST = 0xFF - HEADER


class VendorCapability(Declared):
    """``where = VendorCapability(body)``: ``body`` has the bytes after the length byte, as they are after a reset.

    ``writable`` has a one for each bit that a guest may change. It may be shorter than ``body``; the rest is then
    read-only. On an instance the attribute is a writable memoryview of the current body. Capabilities lie in config
    space in the order of their declarations.
    """

    def __init__(self, body: bytes, *, writable: bytes = b"") -> None:
        self.body = body
        self.writable = writable.ljust(len(body), b"\0")
        self.size = len(body)

    def check(self, where: str) -> None:
        """Refuse a body that is empty or too long for the length byte, and a mask that is longer than the body."""
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
        """Run ``hook(self, offset, size)`` before a guest reads these bytes of the body. The hook may change them."""
        return mark(hook, "read", self)

    def write(self, hook: Hook) -> Hook:
        """Run ``hook(self, offset, size)`` after a guest has written these bytes of the body."""
        return mark(hook, "write", self)
