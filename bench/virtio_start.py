"""Initializes a virtio device without a VM (virtio 1.2 §3.1.1, §4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bellwire.virtio import Feature, Status
from bench.initiator import Plugged, capability

_VENDOR, _COMMON, _NOTIFY = 0x09, 1, 2


def start(device: Plugged, index: int, parts: Sequence[int], size: int, features: int = 0) -> Callable[[int], None]:
    """Bring the device up with one split queue, ``index``, at these three addresses; returns what notifies it."""
    places = {}
    config = device.client.read(7, 0, 256)
    for at in capability(device.client, _VENDOR):
        places[config[at + 3]] = at, int.from_bytes(config[at + 8 : at + 12], "little")
    common, (notify_at, notify) = places[_COMMON][1], places[_NOTIFY]
    status = Status.ACKNOWLEDGE | Status.DRIVER
    device.write(common + 0x14, 0, 1)
    device.write(common + 0x14, status, 1)
    features |= 1 << Feature.VERSION_1 | 1 << Feature.ACCESS_PLATFORM
    for select in range(2):
        device.write(common + 0x08, select, 4)
        device.write(common + 0x0C, features >> 32 * select & 0xFFFF_FFFF, 4)
    status |= Status.FEATURES_OK
    device.write(common + 0x14, status, 1)
    if device.read(common + 0x14, 1) != status:
        raise OSError("the device refuses the features")
    device.write(common + 0x16, index, 2)
    device.write(common + 0x18, size, 2)
    device.write(common + 0x1A, 1, 2)
    for offset, address in zip((0x20, 0x28, 0x30), parts, strict=True):
        device.write(common + offset, address, 8)
    device.write(common + 0x1C, 1, 2)
    multiplier = int.from_bytes(config[notify_at + 16 : notify_at + 20], "little")
    bell = notify + multiplier * device.read(common + 0x1E, 2)
    device.write(common + 0x14, status | Status.DRIVER_OK, 1)
    ring = device.bell(bell, 2)
    return lambda _: ring(index)
