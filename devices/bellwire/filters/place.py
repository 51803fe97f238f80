"""A place: the bytes of a region that a guest's access touches, with the names that the device's author gave them."""

from __future__ import annotations

from typing import Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import Layout, Placed
from bellwire.declare.register import Register
from bellwire.model.labels import Labels
from vfio_user import RegionIndex

MOST_KNOWN = 1024
_NAMES = {int(RegionIndex.ROM): "ROM", int(RegionIndex.CONFIG): "config"}


class Place:
    """``count`` bytes at ``offset`` of region ``region`` (0 to 5 are the BARs, ``RegionIndex.CONFIG`` config space)."""

    __slots__ = ("count", "items", "label", "mask", "name", "offset", "region", "register")

    def __init__(self, region: int, offset: int, count: int, name: str, items: tuple[tuple[int, Placed], ...]) -> None:
        self.region = region
        self.offset = offset
        self.count = count
        self.mask = (1 << 8 * count) - 1
        """The largest value that the bytes can have."""
        self.name = name
        """What lies there: ``"status"``; several names have commas between them."""
        self.items = items
        """The declarations that the bytes touch, each with its offset in the region: registers, doorbells, areas."""
        exact = [item for at, item in items if isinstance(item, Register) and (at, item.size) == (offset, count)]
        self.register: Register[Any] | None = exact[0] if exact else None
        """The register that exactly these bytes make up, or None."""
        self.label = f"{_NAMES.get(region, f'BAR{region}')}+{offset:#x}"
        """The place as a datasheet gives it: ``"BAR0+0x14"``."""

    def __repr__(self) -> str:
        return f"<{self.count} bytes at {self.label}: {self.name}>"

    def touches(self, register: Register[Any] | str) -> bool:
        """Whether the access has any byte of ``register``, which may be given by its name."""
        return any(register in (item, getattr(item, "name", None)) for _, item in self.items)

    def part(self, register: Register[Any], value: int) -> int:
        """The bits of ``register`` in ``value``, which is what all the bytes hold. Bits outside the access are 0."""
        shift = self._shift(register)
        return (value << -shift if shift < 0 else value >> shift) & (1 << 8 * register.size) - 1

    def changed(self, register: Register[Any], value: int, bits: int) -> int:
        """``value`` with ``bits`` in the place of those of ``register``. Bits outside the access are lost."""
        shift = self._shift(register)
        own = (1 << 8 * register.size) - 1
        mask = own >> -shift if shift < 0 else own << shift
        moved = (bits & own) >> -shift if shift < 0 else (bits & own) << shift
        return (value & ~mask | moved) & self.mask

    def meaning(self, value: int) -> str:
        """``value`` in the words of the register's kind: its flags or its name. Empty if it has none."""
        return "" if self.register is None else self.register.meaning(value)

    def _shift(self, register: Register[Any]) -> int:
        """How many bits the register begins above the access's first byte; negative if below."""
        for at, item in self.items:
            if item is register:
                return 8 * (at - self.offset)
        raise ValueError(f"{self!r} has no byte of {register}")


class Places:
    """Makes the places of one device. The last :data:`MOST_KNOWN` are kept: a guest may access any bytes."""

    def __init__(self, layout: Layout) -> None:
        self._labels = Labels(layout)
        self._placed: dict[int, list[tuple[int, Placed]]] = {
            index: [(item.offset, item) for item in plan.placed] for index, plan in layout.bars.items()
        }
        self._placed[RegionIndex.CONFIG] = [
            (each.at + item.offset, item) for each in layout.extended for item in each.placed
        ]
        self._known: dict[tuple[int, int, int], Place] = {}

    def at(self, region: int, offset: int, count: int) -> Place:
        """The place of ``count`` bytes at ``offset`` of ``region``."""
        key = region, offset, count
        place = self._known.get(key)
        if place is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            touched = tuple(
                (at, item)
                for at, item in self._placed.get(region, ())
                if at < offset + count and offset < at + item.size
            )
            name = ", ".join(self._labels.at(region, offset, count))
            place = self._known[key] = Place(region, offset, count, name, touched)
        return place

    def of(self, region: IoRegion, offset: int, count: int) -> Place:
        """The place of ``count`` bytes at ``offset`` of an ioregion."""
        return self.at(region.bar.index, region.offset + offset, count)


def within_ioregion(place: Place) -> bool:
    """Whether all bytes belong to one ioregion: its hooks get them in pieces, each an event of its own."""
    if len(place.items) != 1:
        return False
    at, item = place.items[0]
    return isinstance(item, IoRegion) and at <= place.offset and place.offset + place.count <= at + item.size


def rung(place: Place, value: int) -> bool:
    """Whether a write of ``value`` rings a doorbell, as :class:`bellwire.model.space.DoorbellCell` decides it."""
    for at, item in place.items:
        if not isinstance(item, Doorbell) or at != place.offset:
            continue
        if item.accepted is None or (place.count == item.size and value in item.accepted):
            return True
    return False
