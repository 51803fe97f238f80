"""PCI bus 0: configuration mechanism #1 (PCI 3.0 §3.2.2.3.2) and the host bridge in slot 0."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from bellwire_vmm.errors import AddressConflictError, StateError

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
SLOTS = 32
_RESET_CONTROL, _RESET = 1, 0x04  # port 0xCF9 lies among these eight, and resets PCs with Intel's chipsets


class Function(Protocol):
    """The one function of a slot. Accesses to its 256 bytes have 1, 2 or 4 bytes, and never cross a dword."""

    def config_read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of config space."""

    def config_write(self, offset: int, data: bytes) -> None:
        """Write to config space, as the guest does."""


class HostBridge:
    """The host bridge in slot 0: an identity only, for guests that look for a host bridge."""

    _CONTENT = struct.pack("<HHHHBBBB", 0x1B36, 0x0008, 0, 0, 0, 0, 0, 6).ljust(256, b"\0")

    def config_read(self, offset: int, size: int) -> bytes:
        """Read from a constant header."""
        return self._CONTENT[offset : offset + size]

    def config_write(self, offset: int, data: bytes) -> None:
        """Ignore the write: all registers are read-only."""


class PciBus:
    """The slots, and the eight ports through which a guest configures them (a `bus.Target`).

    ``on_reset`` is called when the guest resets the machine through one of them.
    """

    def __init__(self) -> None:
        self.on_reset: Callable[[], None] = lambda: None
        self._functions: dict[int, Function] = {0: HostBridge()}
        self._selected = 0

    def free_slot(self) -> int:
        """The first empty slot. Raises AddressConflictError if the bus is full."""
        for slot in range(SLOTS):
            if slot not in self._functions:
                return slot
        raise AddressConflictError(f"all {SLOTS} slots of the PCI bus are taken")

    def insert(self, slot: int, function: Function) -> None:
        """Put a function into an empty slot."""
        self._functions[slot] = function

    def remove(self, slot: int) -> None:
        """Empty a slot."""
        del self._functions[slot]

    def read(self, offset: int, size: int) -> bytes:
        """Read CONFIG_ADDRESS as it was written, or CONFIG_DATA from the function that it selects."""
        if offset == 0 and size == 4:
            return self._selected.to_bytes(4, "little")
        found = self._function(offset, size)
        return b"\xff" * size if found is None else found[0].config_read(found[1], size)

    def write(self, offset: int, data: bytes) -> None:
        """Write CONFIG_ADDRESS (dwords only), or CONFIG_DATA to the function that it selects."""
        if offset == 0 and len(data) == 4:
            self._selected = int.from_bytes(data, "little")
            return
        if offset == _RESET_CONTROL and len(data) == 1 and data[0] & _RESET:
            self.on_reset()
            return
        found = self._function(offset, len(data))
        if found is not None:
            found[0].config_write(found[1], data)

    def state(self) -> bytes:
        """CONFIG_ADDRESS, four bytes (`part.Part`)."""
        return self._selected.to_bytes(4, "little")

    def set_state(self, state: bytes) -> None:
        """Set CONFIG_ADDRESS. Raises StateError unless there are four bytes."""
        if len(state) != 4:
            raise StateError(f"CONFIG_ADDRESS of {len(state)} bytes, expected 4")
        self._selected = int.from_bytes(state, "little")

    def _function(self, offset: int, size: int) -> tuple[Function, int] | None:
        within = offset - (CONFIG_DATA - CONFIG_ADDRESS)
        enabled, bus, slot, number = (
            self._selected >> 31,
            self._selected >> 16 & 0xFF,
            self._selected >> 11 & 0x1F,
            self._selected >> 8 & 7,
        )
        if within < 0 or within + size > 4 or not enabled or bus or number:
            return None
        function = self._functions.get(slot)
        return None if function is None else (function, (self._selected & 0xFC) + within)
