"""Virtio over PCI (virtio 1.2 §4.1): capabilities, initialization, interrupts, BARs through config space."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bellwire import GuestError
from bellwire.declare.bar import Bar
from bellwire.declare.register import Register
from bellwire.model import capabilities as pci
from bellwire.serve.doorbell_fds import DoorbellFds
from bellwire.testing import conformance
from bellwire.virtio import Feature, Status, VirtioDevice
from bellwire.virtio.transport import Transport
from vfio_user import IoEventFd, IrqIndex, Mechanism
from virtio.driver import DEVICE, ISR, NOTIFY, READY, Driver
from virtio.echo import COLOUR, Echo

TestEcho = conformance(Echo)
NO_VECTOR = 0xFFFF


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver(Echo) as driver:
        yield driver


def echo(driver: Driver) -> Echo:
    assert isinstance(driver.device, Echo)
    return driver.device


def test_the_identity_is_a_modern_devices(driver: Driver) -> None:
    assert driver.guest.config_read(0, 4) == (0x1040 + 63) << 16 | 0x1AF4
    assert driver.guest.config_read(pci.COMMAND + 4, 1) == 1  # revision


def test_every_structure_lies_within_its_bar(driver: Driver) -> None:
    assert set(driver.places) == {1, 2, 3, 4, 5}
    for kind in (1, 2, 3, 4):
        place = driver.places[kind]
        assert place.offset + place.length <= driver.guest.device.core.region_size(place.bar)


def test_each_queue_has_a_doorbell_of_its_own(driver: Driver) -> None:
    driver.negotiate()
    bells = [driver.add_queue(index).bell for index in range(3)]
    assert bells == [driver.places[NOTIFY].offset + 4 * index for index in range(3)]


def test_doorbells_are_ioeventfds_of_length_0(driver: Driver) -> None:
    watched: set[int] = set()
    bells = DoorbellFds(
        driver.device.core, lambda function, *arguments: function(*arguments), watched.add, watched.remove
    )
    try:
        found = bells.sub_regions(0, frozenset({Mechanism.IOEVENTFD, Mechanism.IOREGIONFD}))
        assert all(isinstance(bell, IoEventFd) and bell.size == 0 and bell.datamatch is None for bell in found)
        assert [bell.offset for bell in found] == [driver.places[NOTIFY].offset + 4 * index for index in range(3)]
        assert watched == {bell.fd for bell in found if isinstance(bell, IoEventFd)}
    finally:
        bells.close()
    assert watched == set()


def test_the_device_offers_its_own_features_and_the_transports(driver: Driver) -> None:
    assert driver.offered() == {
        COLOUR,
        Feature.INDIRECT_DESC,
        Feature.EVENT_IDX,
        Feature.VERSION_1,
        Feature.ACCESS_PLATFORM,
        Feature.RING_PACKED,
    }


def test_notification_data_is_never_offered(driver: Driver) -> None:
    assert 38 not in driver.offered()


def test_packed_rings_need_not_be_offered() -> None:
    with Driver(Echo, packed=False) as driver:
        assert Feature.RING_PACKED not in driver.offered()
        assert not driver.negotiate({Feature.RING_PACKED})


def test_there_are_no_features_beyond_63(driver: Driver) -> None:
    driver.set_common(0x00, 2, 4)
    assert driver.common(0x04, 4) == 0


def test_a_driver_without_version_1_is_refused(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.status = Status.ACKNOWLEDGE | Status.DRIVER
    driver.accept({COLOUR})
    with caplog.at_level(logging.WARNING):
        driver.status |= Status.FEATURES_OK
    assert Status.FEATURES_OK not in driver.status
    assert "features refused: 0x20" in caplog.text


@pytest.mark.same_device("the limit of the log begins anew with a process")
def test_refusals_without_end_do_not_fill_the_log(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            assert not driver.negotiate({6})
    assert 1 <= caplog.text.count("features refused") <= 10


def test_a_feature_that_was_not_offered_is_refused(driver: Driver) -> None:
    assert not driver.negotiate({COLOUR, 6})


def test_after_a_refusal_the_driver_may_try_again(driver: Driver) -> None:
    assert not driver.negotiate({6})
    assert driver.negotiate({COLOUR})
    assert driver.device.negotiated >= {COLOUR, Feature.VERSION_1}


def test_features_are_settled_by_features_ok(driver: Driver) -> None:
    driver.negotiate({COLOUR})
    driver.accept({Feature.VERSION_1})
    driver.set_common(0x08, 0, 4)
    assert driver.common(0x0C, 4) == 1 << COLOUR


def test_the_driver_is_not_ready_before_features_are_settled(driver: Driver) -> None:
    driver.status = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK
    assert Status.DRIVER_OK not in driver.status
    assert not driver.device.running


def test_a_driver_cannot_clear_bits_of_the_status(driver: Driver) -> None:
    driver.start()
    driver.status = Status.ACKNOWLEDGE
    assert driver.status == READY


def test_a_driver_cannot_set_needs_reset(driver: Driver) -> None:
    driver.status = Status.ACKNOWLEDGE | Status.NEEDS_RESET
    assert driver.status == Status.ACKNOWLEDGE


def test_a_reset_leads_back_to_the_start(driver: Driver) -> None:
    driver.start({COLOUR})
    driver.status = Status(0)
    assert driver.status == Status(0)
    assert driver.device.negotiated == frozenset()
    driver.set_common(0x16, 0, 2)
    assert driver.common(0x1C, 2) == 0
    assert driver.common(0x1A, 2) == driver.common(0x10, 2) == NO_VECTOR


def test_the_device_type_hears_of_start_and_reset(driver: Driver) -> None:
    driver.start()
    driver.status = Status(0)
    assert echo(driver).life[-2:] == ["started", "stopped"]


def test_a_reset_leaves_config_space_alone(driver: Driver) -> None:
    driver.start()
    driver.status = Status(0)
    assert driver.guest.config_read(pci.COMMAND, 2) & pci.BUS_MASTER


def test_queues_that_are_not_there_have_no_size(driver: Driver) -> None:
    assert driver.common(0x12, 2) == 3
    sizes = []
    for index in range(4):
        driver.set_common(0x16, index, 2)
        sizes.append(driver.common(0x18, 2))
    assert sizes == [64, 64, 64, 0]


def test_a_doorbell_of_a_queue_that_is_not_there_is_ignored(driver: Driver) -> None:
    driver.start()
    driver.guest.write(driver.places[NOTIFY].bar, 99, offset=driver.places[NOTIFY].offset + 4 * 99, size=2)


def test_each_queue_keeps_its_own_registers(driver: Driver) -> None:
    places = (0x20, 0x28, 0x30)
    for index in range(2):
        driver.set_common(0x16, index, 2)
        for place in places:
            driver.set_common(place, 0x1000 * (index + 1) + 0x40 * place, 8)
    for index in (0, 1, 0):
        driver.set_common(0x16, index, 2)
        assert [driver.common(place, 8) for place in places] == [
            0x1000 * (index + 1) + 0x40 * place for place in places
        ]


def test_a_queue_is_enabled_by_1_and_stays_so(driver: Driver) -> None:
    """§4.1.4.3.2: a driver must not write 0."""
    driver.negotiate()
    driver.add_queue(0)
    for index, value, enabled in ((0, 1, 1), (0, 0, 1), (1, 0, 0), (1, 2, 0), (0, 2, 1), (3, 1, 0), (1, 0, 0)):
        driver.set_common(0x16, index, 2)
        assert driver.common(0x1C, 2) == (index == 0)
        driver.set_common(0x1C, value, 2)
        assert driver.common(0x1C, 2) == enabled


def test_an_enabled_queue_stays_where_it_is(driver: Driver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    driver.set_common(0x20, 0xDEAD_0000, 8)
    driver.set_common(0x18, 8, 2)
    assert (driver.common(0x20, 8), driver.common(0x18, 2)) == (queue.parts[0], 16)


@pytest.mark.parametrize("size", [0, 3, 65])
def test_a_size_that_no_split_queue_can_have_breaks_the_device(driver: Driver, size: int) -> None:
    driver.negotiate()
    with pytest.raises(GuestError, match=f"a size of {size}"):
        driver.add_queue(0, size)
    assert Status.NEEDS_RESET in driver.status


def test_a_packed_queue_may_have_any_size(driver: Driver) -> None:
    driver.negotiate({Feature.RING_PACKED})
    driver.add_queue(0, 7)
    driver.status |= Status.DRIVER_OK
    driver.queues[0].send(b"abc", write=3)
    assert driver.queues[0].answers() == [b"cba"]


def test_a_misaligned_ring_breaks_the_device(driver: Driver) -> None:
    driver.negotiate()
    driver.set_common(0x20, 0x1008, 8)
    with pytest.raises(GuestError, match="misaligned ring"):
        driver.set_common(0x1C, 1, 2)


def test_a_vector_that_is_not_there_reads_back_as_none(driver: Driver) -> None:
    driver.set_common(0x1A, 4, 2)
    driver.set_common(0x10, 99, 2)
    assert driver.common(0x1A, 2) == driver.common(0x10, 2) == NO_VECTOR


def test_each_queue_interrupts_by_its_own_vector(driver: Driver) -> None:
    driver.start(queues=(0, 1))
    driver.queues[1].send(b"x", write=1)
    assert driver.guest.interrupts == {(IrqIndex.MSIX, 2): 1}


def test_without_a_vector_there_is_no_interrupt(driver: Driver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0, vector=NO_VECTOR)
    driver.status |= Status.DRIVER_OK
    queue.send(b"x", write=1)
    assert not driver.guest.interrupts
    assert not driver.guest.line


def without_msix(driver: Driver) -> None:
    at = driver.guest.device.core.config.at[pci.MSIX]
    driver.guest.config_write(at + 2, 0, 2)


def test_without_msix_the_line_rises_until_the_isr_is_read(driver: Driver) -> None:
    without_msix(driver)
    driver.start()
    driver.queues[0].send(b"x", write=1)
    assert driver.guest.line
    assert driver.isr() == 1
    assert not driver.guest.line
    assert driver.isr() == 0


def test_a_reset_lowers_the_line(driver: Driver) -> None:
    without_msix(driver)
    driver.start()
    driver.queues[0].send(b"x", write=1)
    driver.status = Status(0)
    assert not driver.guest.line
    assert driver.isr() == 0


def test_without_bus_mastering_there_is_no_interrupt(driver: Driver) -> None:
    driver.start()
    driver.set_common(0x10, 0, 2)
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    driver.device.configuration_changed()
    assert not driver.guest.interrupts


def test_a_change_of_the_configuration_interrupts_and_counts(driver: Driver) -> None:
    driver.start()
    driver.set_common(0x10, 0, 2)
    before = driver.common(0x15, 1)
    driver.device.configuration_changed()
    assert driver.common(0x15, 1) == before + 1
    assert driver.guest.interrupts == {(IrqIndex.MSIX, 0): 1}


def test_a_change_of_the_configuration_has_its_own_bit_in_the_isr(driver: Driver) -> None:
    without_msix(driver)
    driver.start()
    driver.device.configuration_changed()
    assert driver.isr() == 2


def test_nobody_is_told_of_a_change_before_the_driver_is_ready(driver: Driver) -> None:
    driver.set_common(0x10, 0, 2)
    driver.device.configuration_changed()
    assert not driver.guest.interrupts


def test_a_driver_is_told_to_set_up_a_device_anew_that_was_in_d3hot(driver: Driver) -> None:
    driver.start()
    control = driver.device.core.config.at[pci.POWER_MANAGEMENT] + 4
    assert not driver.guest.config_read(control, 2) & pci.NO_SOFT_RESET
    driver.guest.config_write(control, 3, 2)
    driver.guest.config_write(control, 0, 2)
    assert driver.status == Status(0)
    driver.guest.enable()
    driver.start()
    driver.queues[0].send(b"ab", write=2)
    assert driver.queues[0].answers() == [b"ba"]


def test_fields_of_the_device_type_lie_where_the_capability_says(driver: Driver) -> None:
    assert driver.places[DEVICE].length >= 10
    assert driver.config(8, 2) == 7


def test_the_common_configuration_is_laid_out_as_the_text_has_it() -> None:
    """§4.1.4.3; the last number is the value after a reset."""
    found = {
        register.name: (register.offset, register.size, register.access_word, register.reset)
        for register in vars(Transport).values()
        if isinstance(register, Register)
    }
    assert found == {
        "device_feature_select": (0x00, 4, "rw", 0),
        "device_feature": (0x04, 4, "ro", 0),
        "driver_feature_select": (0x08, 4, "rw", 0),
        "driver_feature": (0x0C, 4, "rw", 0),
        "config_msix_vector": (0x10, 2, "rw", 0xFFFF),
        "num_queues": (0x12, 2, "ro", 0),
        "device_status": (0x14, 1, "rw", 0),
        "config_generation": (0x15, 1, "ro", 0),
        "queue_select": (0x16, 2, "rw", 0),
        "queue_size": (0x18, 2, "rw", 0),
        "queue_msix_vector": (0x1A, 2, "rw", 0xFFFF),
        "queue_enable": (0x1C, 2, "rw", 0),
        "queue_notify_off": (0x1E, 2, "ro", 0),
        "queue_desc": (0x20, 8, "rw", 0),
        "queue_driver": (0x28, 8, "rw", 0),
        "queue_device": (0x30, 8, "rw", 0),
        "isr": (0x1000, 1, "rc", 0),
    }
    assert Transport.device_status.writable == 0
    assert Transport.mmio.size == 1 << 14
    assert (Transport.notify.offset, Transport.notify.size, Transport.notify.bell) == (0x3000, 512, 4)


def test_isr_and_notification_lie_in_pages_of_their_own(driver: Driver) -> None:
    pages = [driver.places[kind].offset // 4096 for kind in (1, ISR, DEVICE, NOTIFY)]
    assert len(set(pages)) == 4


def test_a_snapshot_of_a_device_at_work_goes_on_elsewhere(driver: Driver) -> None:
    driver.start({COLOUR, Feature.RING_PACKED})
    queue = driver.queues[0]
    queue.send(b"one", write=3)
    queue.add(b"two", write=3)
    with Driver(Echo) as other:
        other.memory[:] = driver.memory
        queue.memory = other.memory
        other.guest.device.core.restore(driver.guest.device.core.snapshot())
        other.guest.advance()
        assert queue.answers() == [b"eno", b"owt"]


def test_a_bar_is_one_that_drivers_can_map() -> None:
    assert isinstance(VirtioDevice.mmio, Bar)
    assert not VirtioDevice.mmio.io


def test_only_an_enabled_queue_of_a_running_driver_is_attended(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    device = driver.device
    heard: list[int] = []
    monkeypatch.setattr(device, "notified", lambda queue: heard.append(queue.index))
    driver.start(set(), [0])
    for queue in device.virtqueues:
        device.attend(queue)
    assert heard == [0]
    device.running = False  # as before DRIVER_OK, and after an error
    for queue in device.virtqueues:
        device.attend(queue)
    assert heard == [0]
