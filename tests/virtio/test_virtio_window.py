"""The capabilities that locate virtio's structures, and the window into the BAR (virtio 1.2 §4.1.4, §4.1.4.9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire.virtio import Status
from vfio_user import RegionIndex
from virtio.driver import DEVICE, ISR, NOTIFY, PCI_ACCESS, Driver
from virtio.echo import Echo
from virtio.test_virtio_transport import without_msix


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver(Echo) as driver:
        yield driver


class PciCfg:
    """The way to a BAR through config space (§4.1.4.9)."""

    def __init__(self, driver: Driver) -> None:
        self.guest = driver.guest
        self.at = driver.places[PCI_ACCESS].capability

    def aim(self, bar: int, offset: int, length: int) -> None:
        self.guest.config_write(self.at + 4, bar, 1)
        self.guest.config_write(self.at + 8, offset, 4)
        self.guest.config_write(self.at + 12, length, 4)


def test_capabilities_have_the_length_of_their_structures(driver: Driver) -> None:
    """§4.1.4, §4.1.4.4, §4.1.4.9: a multiplier or data may follow."""
    read = driver.guest.config_read
    found = {kind: (read(place.capability + 2, 1), place.bar, place.length) for kind, place in driver.places.items()}
    assert found == {
        1: (16, 0, 64),
        NOTIFY: (20, 0, 512),
        ISR: (16, 0, 4),
        DEVICE: (16, 0, 4096),
        PCI_ACCESS: (20, 0, 0),
    }
    assert driver.multiplier == 4
    assert driver.places[PCI_ACCESS].offset == 0
    assert read(driver.places[PCI_ACCESS].capability + 16, 4) == 0


def test_a_driver_may_write_the_windows_bar_place_and_data_only(driver: Driver) -> None:
    """§4.1.4.9.1."""
    at, config = driver.places[PCI_ACCESS].capability, driver.guest
    before = [config.config_read(at + place, 1) for place in range(20)]
    for place in range(2, 20):
        config.config_write(at + place, 0xFF, 1)
    after = [config.config_read(at + place, 1) for place in range(20)]
    assert after == [*before[:4], 0xFF, *before[5:8], *[0xFF] * 12]


def test_the_window_reads_the_bar(driver: Driver) -> None:
    pci_cfg = PciCfg(driver)
    pci_cfg.aim(0, 0x12, 2)
    assert driver.guest.config_read(pci_cfg.at + 16, 2) == 3


def test_the_window_writes_the_bar(driver: Driver) -> None:
    pci_cfg = PciCfg(driver)
    pci_cfg.aim(0, 0x14, 1)
    driver.guest.config_write(pci_cfg.at + 16, Status.ACKNOWLEDGE, 1)
    assert driver.status == Status.ACKNOWLEDGE


def test_only_an_access_to_the_windows_data_reaches_the_bar(driver: Driver) -> None:
    without_msix(driver)
    driver.start()
    driver.queues[0].send(b"x", write=1)
    pci_cfg = PciCfg(driver)
    pci_cfg.aim(0, driver.places[ISR].offset, 1)
    # to read the length does not read the ISR status
    found = [(driver.guest.config_read(pci_cfg.at + place, 1), driver.guest.line) for place in (12, 16)]
    assert found == [(1, True), (1, False)]
    pci_cfg.aim(0, 0x00, 4)
    driver.guest.config_write(pci_cfg.at + 16, 1, 4)
    driver.set_common(0x08, 0, 4)
    pci_cfg.aim(0, 0x08, 4)
    assert driver.common(0x08, 4) == 0, "to write the length has written the register"


def test_a_doorbell_may_be_rung_through_the_window(driver: Driver) -> None:
    driver.start()
    driver.queues[0].add(b"abc", write=3)
    pci_cfg = PciCfg(driver)
    pci_cfg.aim(0, driver.queues[0].bell, 2)
    driver.guest.config_write(pci_cfg.at + 16, 0, 2)
    assert driver.queues[0].answers() == [b"cba"]


@pytest.mark.parametrize(("bar", "offset", "length"), [(0, 0x3FFE, 4), (4, 0, 4), (0xFF, 0, 1), (0, 1, 2), (0, 0, 8)])
def test_a_window_that_shows_nothing_does_nothing(driver: Driver, bar: int, offset: int, length: int) -> None:
    pci_cfg = PciCfg(driver)
    pci_cfg.aim(bar, offset, length)
    driver.guest.config_write(pci_cfg.at + 16, 0x1234_5678, 4)
    assert driver.guest.config_read(pci_cfg.at + 16, 4) == 0x1234_5678


def test_a_window_does_not_show_config_space(driver: Driver) -> None:
    pci_cfg = PciCfg(driver)
    data = pci_cfg.at + 16
    pci_cfg.aim(RegionIndex.CONFIG, data, 4)  # itself
    driver.guest.config_write(data, 0x1234_5678, 4)
    assert driver.guest.config_read(data, 4) == 0x1234_5678
