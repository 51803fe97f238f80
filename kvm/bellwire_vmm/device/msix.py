"""The MSI-X table, which the VMM owns (PCI 3.0 §6.8.2): the device never sees what the guest writes to it."""

from __future__ import annotations

import struct

from bellwire_vmm.device.capabilities import MsixCapability
from bellwire_vmm.device.vectors import Message, Vector, set_all
from bellwire_vmm.errors import StateError

ENTRY = 16
_FIELDS = struct.Struct("<QII")
_MASKED = 1


class MsixTable:
    """``layout.vectors`` entries of 16 bytes: address, data, and a control word whose bit 0 masks.

    `connect` gives it the vectors while MSI-X is on.
    """

    def __init__(self, layout: MsixCapability) -> None:
        self.layout = layout
        self.function_mask = False
        self._vectors: list[Vector] = []
        self._content = bytearray()
        self.reset()

    def reset(self) -> None:
        """Mask every vector, and set its address and data to zero."""
        self._content = bytearray(_FIELDS.pack(0, 0, _MASKED) * self.layout.vectors)
        self.function_mask = False

    @property
    def content(self) -> bytes:
        """The whole table, as the guest reads it."""
        return bytes(self._content)

    def restore(self, content: bytes) -> None:
        """Set the whole table, before vectors are connected. Raises StateError for a table of another size."""
        if len(content) != len(self._content):
            raise StateError(f"an MSI-X table of {len(content)} bytes, expected {len(self._content)}")
        self.write(0, content)

    def connect(self, vectors: list[Vector]) -> None:
        """Let the entries route ``vectors`` from now on. An empty list disconnects."""
        self._vectors = vectors
        self.apply()

    def apply(self) -> None:
        """Route every vector as its entry and the function mask demand."""
        set_all(self._vectors, map(self._message, range(len(self._vectors))))

    def read(self, offset: int, size: int) -> bytes:
        """Read the table, as the guest does."""
        return bytes(self._content[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write the table, as the guest does. Of the control word only the mask bit changes."""
        self._content[offset : offset + len(data)] = data
        for number in range(offset // ENTRY, (offset + len(data) - 1) // ENTRY + 1):
            control = number * ENTRY + 12
            self._content[control : control + 4] = bytes((self._content[control] & _MASKED, 0, 0, 0))
            if number < len(self._vectors):
                self._vectors[number].set(*self._message(number))

    def pending(self, offset: int, from_device: bytes) -> bytes:
        """The pending bits at ``offset`` of the array: the device's, and those of vectors that the VMM holds back."""
        bits = int.from_bytes(from_device, "little")
        first = offset * 8
        for number, vector in enumerate(self._vectors[first : first + 8 * len(from_device)]):
            bits |= vector.pending << number
        return bits.to_bytes(len(from_device), "little")

    def _message(self, number: int) -> Message:
        address, data, control = _FIELDS.unpack_from(self._content, number * ENTRY)
        opened = not control & _MASKED and not self.function_mask and address != 0
        return Message(address, data, opened)
