"""What a driver is told of each virtio device before it does anything (virtio 1.2 §4.1.2, §4.1.4.3, §5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bellwire import PciDevice
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.declare.register import Register
from bellwire.virtio.transport import DEVICE
from virtio.driver import Driver


class Told(NamedTuple):
    """Numbers in the device's registers; ``fields`` are offset, size and value in its configuration."""

    device: type[PciDevice]
    options: dict[str, Any]
    kind: int
    class_code: int
    queues: int
    queue_size: int
    fields: list[tuple[int, int, int]]


DEVICES = {
    "net": Told(
        VirtioNet,
        {"local": "SOCKET", "mac": "52:54:00:12:34:56", "mtu": 1400},
        1,
        0x020000,
        3,
        1024,
        [(0, 6, 0x5634_1200_5452), (6, 2, 1), (8, 2, 1), (10, 2, 1400)],
    ),
    "blk": Told(
        VirtioBlk,
        {"size": 1 << 20, "queues": 16, "block_size": 4096},
        2,
        0x010000,
        16,
        256,
        [
            (0x00, 8, 2048),
            (0x08, 4, 256 << 10),
            (0x0C, 4, 254),
            (0x14, 4, 4096),
            (0x20, 1, 0),
            (0x22, 2, 16),
            (0x24, 4, 1 << 22),
            (0x28, 4, 256),
            (0x2C, 4, 1),
            (0x30, 4, 1 << 22),
            (0x34, 4, 256),
            (0x38, 1, 1),
        ],
    ),
    "console": Told(VirtioConsole, {"ports": "a=null,b=null"}, 3, 0x078000, 6, 128, [(4, 4, 2)]),
    "rng": Told(VirtioRng, {}, 4, 0x00FF00, 1, 256, []),
}


@pytest.fixture(params=DEVICES)
def told(request: pytest.FixtureRequest) -> Told:
    return DEVICES[request.param]


@pytest.fixture
def driver(told: Told, tmp_path: Path) -> Iterator[Driver]:
    options: dict[str, Any] = {
        key: tmp_path / "socket" if value == "SOCKET" else value for key, value in told.options.items()
    }
    with contextlib.closing(Driver(told.device, **options)) as driver:
        yield driver


def test_its_type_and_class(driver: Driver, told: Told) -> None:
    read = driver.guest.config_read
    assert (read(0x00, 2), read(0x02, 2)) == (0x1AF4, 0x1040 + told.kind)
    assert read(0x08, 1) >= 1
    assert read(0x09, 1) | read(0x0A, 2) << 8 == told.class_code
    assert read(0x2E, 2) >= 0x40


def test_its_queues_and_their_sizes(driver: Driver, told: Told) -> None:
    assert driver.common(0x12, 2) == told.queues
    for queue in range(told.queues):
        driver.set_common(0x16, queue, 2)
        assert driver.common(0x18, 2) == told.queue_size
        assert driver.common(0x1C, 2) == 0
    driver.set_common(0x16, told.queues, 2)
    assert driver.common(0x18, 2) == 0


def test_its_configuration(driver: Driver, told: Told) -> None:
    for offset, size, value in told.fields:
        assert driver.config(offset, size) == value
    declared = {
        (place.offset - DEVICE, place.size) for place in vars(told.device).values() if isinstance(place, Register)
    }
    assert {(offset, size) for offset, size, _ in told.fields} <= declared
