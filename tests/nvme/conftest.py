from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.testing import Guest
from nvme.driver import MEMORY, Driver, TestMachine


@pytest.fixture
def guest() -> Iterator[Guest[Nvme]]:
    with Guest(Nvme, memory=MEMORY, size=8 << 20, serial="TEST0001", namespaces=2) as guest:
        yield guest


@pytest.fixture
def driver(guest: Guest[Nvme]) -> Driver:
    driver = Driver(TestMachine(guest))
    driver.enable()
    return driver


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


@pytest.fixture
def on_image(image: Path) -> Iterator[Driver]:
    """A driver of a controller whose namespace is ``image``, of 1 MiB."""
    with Guest(Nvme, memory=MEMORY, image=str(image)) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver
