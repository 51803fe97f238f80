"""Saved fields: device state that is no register. It lies in the state file, so a snapshot has it."""

from __future__ import annotations

import struct
from operator import index
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.errors import StateError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Scalar = TypeVar("Scalar", bound=bool | int | float)

FLOAT = struct.Struct("<d")
CELL = 16  # bytes: room for a signed integer of 128 bits


class Saved(Declared, Generic[Scalar]):
    """``copied = Saved(0)``: a bool, an int (signed, up to 128 bits) or a float. A reset restores the default.

    The type of the default is the field's type; it may also be an IntFlag or an IntEnum. Assigning a value that does
    not fit raises a StateError.
    """

    def __init__(self, default: Scalar) -> None:
        self.default: Scalar = default
        self.size = CELL
        self._kind = type(default)

    @property
    def kind(self) -> str:
        """The name of the field's type."""
        return self._kind.__name__

    def check(self, where: str) -> None:
        """Refuse a default of another type, or one that does not fit in 128 bits."""
        if not isinstance(self.default, bool | int | float):
            self.refuse(where, f"Saved holds an int, bool or float, not {type(self.default).__name__}")
        try:
            self.store(memoryview(bytearray(CELL)), self.default)
        except StateError as error:
            self.refuse(where, str(error))

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Saved[Scalar]: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Scalar: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Any:
        if device is None:
            return self
        cell = device.core.state.saved[self]
        if isinstance(self.default, float):
            return FLOAT.unpack_from(cell)[0]
        value = int.from_bytes(cell, "little", signed=True)
        return value if self._kind is int else self._kind(value)

    def __set__(self, device: PciDevice, value: Scalar) -> None:
        self.store(device.core.state.saved[self], value)

    def store(self, cell: memoryview, value: Any) -> None:
        """Write ``value`` to ``cell``, the field's bytes in the state file. A StateError if it does not fit."""
        try:
            if isinstance(self.default, float):
                FLOAT.pack_into(cell, 0, value)
            else:
                cell[:] = index(value).to_bytes(CELL, "little", signed=True)
        except (OverflowError, TypeError, struct.error) as error:
            raise StateError(f"{self} cannot hold {value!r}: {error}") from None

    def clear(self, cell: memoryview) -> None:
        """Write the default to ``cell``."""
        self.store(cell, self.default)


class SavedBytes(Declared):
    """``buffer = SavedBytes(4096)``: ``size`` bytes; a writable memoryview on an instance. A reset clears it."""

    kind = "bytes"

    def __init__(self, size: int) -> None:
        self.size = size

    def check(self, where: str) -> None:
        """Refuse a size below one byte."""
        if self.size <= 0:
            self.refuse(where, f"size is at least 1, not {self.size}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> SavedBytes: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> memoryview: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> SavedBytes | memoryview:
        if device is None:
            return self
        return device.core.state.saved[self]

    def clear(self, cell: memoryview) -> None:
        """Fill ``cell`` with zeros."""
        cell[:] = bytes(self.size)
