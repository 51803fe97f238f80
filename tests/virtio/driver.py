"""The driver's side of virtio over PCI, on a pretended guest: it knows the device by its capabilities only."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from bellwire.device import PciDevice
from bellwire.model import capabilities as pci
from bellwire.testing import Guest
from bellwire.virtio import Feature, Status, VirtioDevice
from virtio.rings import PackedQueue, Queue, SplitQueue

COMMON, NOTIFY, ISR, DEVICE, PCI_ACCESS = 1, 2, 3, 4, 5
PAGE = 4096
USUAL = {Feature.VERSION_1, Feature.ACCESS_PLATFORM}
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


@dataclass(frozen=True)
class Place:
    """What a capability locates."""

    capability: int
    bar: int
    offset: int
    length: int


class Driver:
    """A driver of ``device``; ``features`` of the device type come on top of the ring's."""

    def __init__(self, device: type[PciDevice], *, memory: int = 8 << 20, **options: Any) -> None:
        self.guest = Guest(device, memory=memory, **options)
        assert isinstance(self.guest.device, VirtioDevice)
        self.device = self.guest.device
        self.memory = self.guest.memory
        self.places = dict(self._find())
        self.multiplier = self.guest.config_read(self.places[NOTIFY].capability + 16, 4)
        self.queues: dict[int, Queue] = {}
        self._free = PAGE

    # -- memory and registers

    def allocate(self, size: int) -> int:
        """Zeroed guest memory, on a boundary of 64 bytes."""
        address = self._free
        self._free += -(-size // 64) * 64
        assert self._free <= len(self.memory)
        self.memory[address : address + size] = bytes(size)
        return address

    def store(self, data: bytes) -> int:
        """``data`` in guest memory: its address."""
        address = self.allocate(max(1, len(data)))
        self.memory[address : address + len(data)] = data
        return address

    def common(self, offset: int, size: int) -> int:
        place = self.places[COMMON]
        return self.guest.read(place.bar, place.offset + offset, size)

    def set_common(self, offset: int, value: int, size: int) -> None:
        place = self.places[COMMON]
        self.guest.write(place.bar, value, offset=place.offset + offset, size=size)

    def config(self, offset: int, size: int) -> int:
        place = self.places[DEVICE]
        return self.guest.read(place.bar, place.offset + offset, size)

    def isr(self) -> int:
        place = self.places[ISR]
        return self.guest.read(place.bar, place.offset, 1)

    # -- initialization (virtio 1.2 §3.1.1)

    @property
    def status(self) -> Status:
        return Status(self.common(0x14, 1))

    @status.setter
    def status(self, value: Status) -> None:
        self.set_common(0x14, value, 1)

    def offered(self) -> set[int]:
        words = []
        for select in range(2):
            self.set_common(0x00, select, 4)
            words.append(self.common(0x04, 4))
        return {bit for bit in range(64) if words[bit // 32] >> bit % 32 & 1}

    def accept(self, features: Iterable[int]) -> None:
        bits = sum(1 << bit for bit in features)
        for select in range(2):
            self.set_common(0x08, select, 4)
            self.set_common(0x0C, bits >> 32 * select & 0xFFFF_FFFF, 4)

    def negotiate(self, features: Iterable[int] = ()) -> bool:
        """Up to FEATURES_OK; whether the device has kept it."""
        self.status = Status(0)
        self.status = Status.ACKNOWLEDGE
        self.status |= Status.DRIVER
        self.features = USUAL | set(features)
        self.accept(self.features)
        self.status |= Status.FEATURES_OK
        return Status.FEATURES_OK in self.status

    def add_queue(self, index: int, size: int = 16, *, vector: int | None = None) -> Queue:
        """Lay a queue down in memory, tell the device, and enable it."""
        self.set_common(0x16, index, 2)
        self.set_common(0x18, size, 2)
        self.set_common(0x1A, index + 1 if vector is None else vector, 2)
        kind = PackedQueue if Feature.RING_PACKED in self.features else SplitQueue
        bell = self.places[NOTIFY].offset + self.multiplier * self.common(0x1E, 2)
        queue = kind(self, index, size, bell, event_idx=Feature.EVENT_IDX in self.features)
        for offset, address in zip((0x20, 0x28, 0x30), queue.parts, strict=True):
            self.set_common(offset, address & 0xFFFF_FFFF, 4)  # in halves, as Linux does
            self.set_common(offset + 4, address >> 32, 4)
        self.set_common(0x1C, 1, 2)
        self.queues[index] = queue
        return queue

    def start(self, features: Iterable[int] = (), queues: Iterable[int] = (0,), *, size: int = 16) -> None:
        """All of it."""
        assert self.negotiate(features)
        for index in queues:
            self.add_queue(index, size)
        self.status |= Status.DRIVER_OK

    def notify(self, queue: Queue) -> None:
        """Write the queue's index to its doorbell."""
        self.guest.write(self.places[NOTIFY].bar, queue.index, offset=queue.bell, size=2)

    def close(self) -> None:
        self.guest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self) -> Iterable[tuple[int, Place]]:
        """The vendor-specific capabilities, the first of each kind (§4.1.4)."""
        at = self.guest.config_read(pci.CAPABILITY_POINTER, 1)
        while at:
            if self.guest.config_read(at, 1) == pci.VENDOR:
                raw = bytes(self.guest.config_read(at + n, 1) for n in range(16))
                _, _, _, kind, bar, _, offset, length = struct.unpack("<BBBBBBxxII", raw)
                yield kind, Place(at, bar, offset, length)
            at = self.guest.config_read(at + 1, 1)
