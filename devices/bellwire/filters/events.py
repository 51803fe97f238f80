"""The events of a device: what a filter's methods get. A filter changes an event by its attributes and methods."""

from __future__ import annotations

import math
from typing import Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.filters.place import Place
from vfio_user import IrqIndex


class Event:
    """Something that happens between guest and device.

    A filter may keep an event, but must not change it after its method has returned.
    """

    __slots__ = ("error", "over", "pause", "times")

    def __init__(self) -> None:
        self.times = 1
        """How often the model gets it."""
        self.over = False
        """Whether a filter has dropped or answered it: the filters behind and the model do not get it."""
        self.pause = 0.0
        """Seconds that the filter which has just seen it wants to pass before it goes on."""
        self.error: Exception | None = None
        """What the model raised for it: a GuestError, or an error of device code."""


class _Droppable(Event):
    __slots__ = ()

    def drop(self) -> None:
        """Lose it: the filters behind and the model never get it."""
        self.over = True

    def again(self, times: int = 1) -> None:
        """Let it happen ``times`` more times: at most 64 in all."""
        self.times = min(self.times + times, 64)


class _Delayed(Event):
    __slots__ = ()

    def delay(self, seconds: float) -> None:
        """Let ``seconds`` pass before it goes on. ``math.inf`` holds it until :meth:`Filter.release`."""
        if not seconds >= 0:
            raise ValueError(f"a delay of {seconds} s: at least 0 expected")
        self.pause += seconds


class Read(_Delayed):
    """A guest's read of registers, an area or config space. The value is an integer, little-endian."""

    __slots__ = ("_value", "mechanism", "place")

    def __init__(self, place: Place, mechanism: str = "message") -> None:
        super().__init__()
        self.place = place
        self.mechanism = mechanism
        """``"message"`` or ``"ioregionfd"``."""
        self._value: int | None = None

    @property
    def value(self) -> int:
        """What the guest gets. A RuntimeError before the model has answered."""
        if self._value is None:
            raise RuntimeError(f"the read of {self.place.name} has no value yet: use after_read")
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = int(value) & self.place.mask

    def answer(self, value: int) -> None:
        """Answer in place of the model: it does not get the read."""
        self.value = value
        self.over = True


class Write(_Droppable, _Delayed):
    """A guest's write to registers, an area or config space. A write that rings a doorbell is a :class:`Ring`."""

    __slots__ = ("_value", "mechanism", "place")

    def __init__(self, place: Place, value: int, mechanism: str = "message") -> None:
        super().__init__()
        self.place = place
        self.mechanism = mechanism
        """``"message"``, ``"ioregionfd"`` or ``"shadow"``."""
        self._value = value

    @property
    def value(self) -> int:
        """What the model gets."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = int(value) & self.place.mask


class Ring(_Droppable, _Delayed):
    """Rings of a doorbell. ``count`` of them have come since the last event for it."""

    __slots__ = ("bell", "count", "mechanism", "offset", "value")

    def __init__(self, bell: Doorbell | IoRegion, offset: int, value: int | None, count: int, mechanism: str) -> None:
        super().__init__()
        self.bell = bell
        """The doorbell, or the row of doorbells: an ioregion."""
        self.offset = offset
        """Of the doorbell within a row, in bytes; 0 for a doorbell alone."""
        self.value = value
        """The value; None if it is lost, as with an ioeventfd."""
        self.count = count
        self.mechanism = mechanism
        """``"ioeventfd"``, ``"shadow"``, ``"ioregionfd"`` or ``"message"``."""

    @property
    def name(self) -> str:
        """The doorbell's name, with the offset in a row."""
        return f"{self.bell.name}+{self.offset:#x}" if isinstance(self.bell, IoRegion) else self.bell.name


class DmaRead(Event):
    """The device reads guest memory."""

    __slots__ = ("_data", "address", "size", "why")

    def __init__(self, address: int, size: int) -> None:
        super().__init__()
        self.address = address
        """Of the first byte, as the guest gave it to the device."""
        self.size = size
        self.why = ""
        """Why it fails; empty if it does not."""
        self._data: bytes | None = None

    @property
    def data(self) -> bytes:
        """The bytes that the device gets. A RuntimeError before they are read."""
        if self._data is None:
            raise RuntimeError("a DMA read has no data yet: use after_dma_read")
        return self._data

    @data.setter
    def data(self, data: bytes | bytearray) -> None:
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes for a DMA read of {self.size}")
        self._data = bytes(data)

    def answer(self, data: bytes | bytearray) -> None:
        """Give the device these bytes: guest memory is not read."""
        self.data = data
        self.over = True

    def fail(self, why: str) -> None:
        """Let it fail: device code gets a GuestError with ``why``, as for memory that the guest lacks."""
        self.why = why
        self.over = True


class DmaWrite(_Droppable, _Delayed):
    """The device writes guest memory. A filter may replace ``data`` by fewer bytes: the first ones are written."""

    __slots__ = ("_data", "address", "size", "why")

    def __init__(self, address: int, data: bytes) -> None:
        super().__init__()
        self.address = address
        self.why = ""
        self.size = len(data)
        """How many bytes the device writes."""
        self._data = data

    @property
    def data(self) -> bytes:
        """The bytes that guest memory gets."""
        return self._data

    @data.setter
    def data(self, data: bytes | bytearray) -> None:
        if len(data) > self.size:
            raise ValueError(f"{len(data)} bytes for a DMA write of {self.size}")
        self._data = bytes(data)

    def fail(self, why: str) -> None:
        """Let it fail, as :meth:`DmaRead.fail`."""
        self.why = why
        self.over = True


class Interrupt(_Droppable, _Delayed):
    """The device triggers a vector of MSI or MSI-X, or changes the level of INTx."""

    __slots__ = ("_vector", "_vectors", "kind", "level", "outcome", "resent")

    def __init__(
        self, kind: IrqIndex, vector: int, vectors: int, level: bool | None = None, resent: bool = False
    ) -> None:
        super().__init__()
        self.kind = kind
        self._vector = vector
        self._vectors = vectors
        self.level = level
        """The new level of INTx; None for MSI and MSI-X."""
        self.resent = resent
        """Whether a pending vector is sent now, because the guest has unmasked it."""
        self.outcome = "lost"
        """``"sent"``, ``"pending"`` (masked) or ``"lost"``: nobody listens, or a later change of the INTx level has
        overtaken this one. Valid in ``after_interrupt``.
        """

    @property
    def vector(self) -> int:
        """The vector. A filter may set another one of the same kind."""
        return self._vector

    @vector.setter
    def vector(self, vector: int) -> None:
        if not 0 <= vector < self._vectors:
            raise ValueError(f"vector {vector} of {self.kind.name}: 0 to {self._vectors - 1} expected")
        self._vector = vector


class Reset(_Droppable):
    """The device is reset: by the client, by a function-level reset, or when a worker starts and ends."""

    __slots__ = ()


class Hook(Event):
    """A method of the device runs: a hook, or a callback of a timer, a descriptor or a thread."""

    __slots__ = ("arguments", "depth", "name", "seconds")

    def __init__(self, name: str, arguments: tuple[Any, ...], depth: int) -> None:
        super().__init__()
        self.name = name
        self.arguments = arguments
        self.depth = depth
        """0 if nothing but the loop has called it: a timer, a descriptor or a thread. More within an event."""
        self.seconds = math.nan
        """How long it took. Valid in ``after_hook``."""


class DmaRange(Event):
    """The client has mapped or unmapped a range of guest memory. Size 0 stands for all that was mapped."""

    __slots__ = ("address", "mapped", "size", "writable")

    def __init__(self, address: int, size: int, *, mapped: bool, writable: bool) -> None:
        super().__init__()
        self.address = address
        self.size = size
        self.mapped = mapped
        self.writable = writable


class DmaView(Event):
    """Device code gets a view of guest memory, to use it in place. No event tells what it reads or writes there."""

    __slots__ = ("address", "size", "writable")

    def __init__(self, address: int, size: int, *, writable: bool) -> None:
        super().__init__()
        self.address = address
        self.size = size
        """At least what device code has asked for: it may get all that the client has mapped around it."""
        self.writable = writable


class Client(Event):
    """A client has connected, or has left."""

    __slots__ = ("connected",)

    def __init__(self, connected: bool) -> None:
        super().__init__()
        self.connected = connected
