"""Device state beyond registers: fields that live in the state buffer, so that a snapshot has them."""

from __future__ import annotations

import struct
from operator import index
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.errors import StateError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Scalar = TypeVar("Scalar", bound=bool | int | float)

_FLOAT = struct.Struct("<d")
CELL = 16  # bytes: an int of 64 bits, signed or not, fits with room to spare


class Saved(Declared, Generic[Scalar]):
    """``copied = Saved(0)``: an int (of up to 128 bits, signed), bool or float; reset brings the default back.

    The default gives the type, which may be an IntFlag or IntEnum too.
    """

    def __init__(self, default: Scalar) -> None:
        self.default: Scalar = default
        self.size = CELL
        self._kind = type(default)

    @property
    def kind(self) -> str:
        """What its cell holds."""
        return self._kind.__name__

    def check(self, where: str) -> None:
        """Refuse what does not fit a cell."""
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
            return _FLOAT.unpack_from(cell)[0]
        value = int.from_bytes(cell, "little", signed=True)
        return value if self._kind is int else self._kind(value)

    def __set__(self, device: PciDevice, value: Scalar) -> None:
        self.store(device.core.state.saved[self], value)

    def store(self, cell: memoryview, value: Any) -> None:
        """Put ``value`` into its cell."""
        try:
            if isinstance(self.default, float):
                _FLOAT.pack_into(cell, 0, value)
            else:
                cell[:] = index(value).to_bytes(CELL, "little", signed=True)
        except (OverflowError, TypeError, struct.error) as error:
            raise StateError(f"{self} cannot hold {value!r}: {error}") from None

    def clear(self, cell: memoryview) -> None:
        """Put the default back."""
        self.store(cell, self.default)


class SavedBytes(Declared):
    """``buffer = SavedBytes(4096)``: a fixed stretch of bytes, a writable memoryview on the instance."""

    kind = "bytes"

    def __init__(self, size: int) -> None:
        self.size = size

    def check(self, where: str) -> None:
        """Refuse an empty stretch."""
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
        """Zero it."""
        cell[:] = bytes(self.size)
