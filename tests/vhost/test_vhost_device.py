"""The device vhost, in front of a back end of the tests' own: features, configuration, rings, wires and their ends."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.vhost import Vhost
from bellwire.model import capabilities as pci
from bellwire.vhost.errors import BackendError
from bellwire.vhost.messages import ProtocolFeature
from bellwire.virtio import Feature, Status
from vfio_user import IrqIndex
from vhost.program import EVENT_IDX, EVERYTHING, OWN, PROTOCOL_FEATURES, USUAL, VERSION_1, Program
from virtio.driver import Driver
from virtio.rings import Queue, SplitQueue

PATIENCE = 30.0
VECTOR = IrqIndex.MSIX, 1
Start = Callable[..., Program]
Attach = Callable[..., Driver]


def until(driver: Driver, true: Callable[[], object]) -> None:
    """Let time pass until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        driver.guest.poll(0.01)
        driver.guest.advance(0.1)


def answers(driver: Driver, count: int = 1, queue: int = 0) -> list[bytes]:
    """The next answers."""
    found: list[bytes] = []

    def enough() -> bool:
        found.extend(driver.queues[queue].answers())
        return len(found) >= count

    until(driver, enough)
    return found


def kicks(driver: Driver) -> Queue:
    """Ring as KVM does: by the eventfd."""
    driver.guest.ring(Vhost.notify, index=0)
    return driver.queues[0]


def test_a_buffer_goes_to_the_back_end_and_comes_back_with_an_interrupt(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.start()
    driver.queues[0].add(b"hello", write=5)
    kicks(driver)
    assert answers(driver) == [b"olleh"]
    until(driver, lambda: driver.guest.interrupts[VECTOR])


def test_a_ring_by_message_is_passed_on(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.start()
    driver.queues[0].send(b"hello", write=5)
    assert answers(driver) == [b"olleh"]


def test_buffers_from_before_the_start_are_seen(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.negotiate()
    driver.add_queue(0).add(b"early", write=5)
    driver.status |= Status.DRIVER_OK
    assert answers(driver) == [b"ylrae"]


def test_the_driver_is_offered_what_the_back_end_has_of_the_type_and_of_rings(start: Start, attach: Attach) -> None:
    start(features=USUAL | EVENT_IDX | 1 << 24 | 1 << 26 | 1 << 40)
    assert attach().offered() == {5, Feature.EVENT_IDX, Feature.VERSION_1, Feature.ACCESS_PLATFORM}


def test_packed_rings_are_offered_if_the_back_end_has_them(start: Start, attach: Attach) -> None:
    start(features=USUAL | 1 << Feature.RING_PACKED)
    for packed in (True, False):
        driver = attach(packed=packed)
        assert (Feature.RING_PACKED in driver.offered()) is packed
        driver.close()


def test_the_back_end_never_hears_of_access_platform(start: Start, attach: Attach) -> None:
    program = start()
    attach().start({5})
    assert program.accepted == VERSION_1 | PROTOCOL_FEATURES | OWN


def test_a_back_end_without_protocol_features_will_do(start: Start, attach: Attach) -> None:
    program = start(features=VERSION_1, protocol=ProtocolFeature(0))
    driver = attach()
    driver.start()
    for ring in program.rings.values():  # they are enabled from the start
        ring.enabled = True
    program.do(lambda: None)
    driver.queues[0].send(b"plain", write=5)
    assert answers(driver) == [b"nialp"]
    assert "SET_VRING_ENABLE" not in program.said


def test_memory_goes_over_as_a_table_to_a_back_end_without_slots(start: Start, attach: Attach) -> None:
    program = start(protocol=EVERYTHING & ~ProtocolFeature.CONFIGURE_MEM_SLOTS)
    driver = attach()
    driver.start()
    assert list(program.regions) == [(0, len(driver.memory), 0, 0)]
    assert "SET_MEM_TABLE" in program.said


def test_the_identity_is_that_of_the_type(start: Start, attach: Attach) -> None:
    start()
    for name, number, class_code in (("rng", 0x1044, 0x00FF00), ("blk", 0x1042, 0x010000), ("42", 0x106A, 0x00FF00)):
        driver = attach(type=name)
        assert driver.guest.config_read(0x00, 4) == number << 16 | 0x1AF4
        assert driver.guest.config_read(0x08, 4) >> 8 == class_code
        driver.close()


# -- configuration


def test_the_configuration_is_the_back_ends(start: Start, attach: Attach) -> None:
    program = start(config=bytes(range(16)))
    driver = attach(type="42")
    assert driver.config(4, 4) == 0x07060504
    assert driver.config(16, 4) == 0
    driver.guest.write(0, 0xAA, offset=0x2002, size=1)
    assert program.config[2] == 0xAA
    assert driver.config(0, 4) == 0x03AA0100


def test_the_driver_hears_of_a_change(start: Start, attach: Attach) -> None:
    program = start(config=bytes(8))
    driver = attach(type="42")
    driver.start()
    driver.set_common(0x10, 0, 2)
    generation = driver.common(0x15, 1)
    program.config = b"changed!"
    program.tell(2)
    until(driver, lambda: driver.config(0, 4) == int.from_bytes(b"chan", "little"))
    assert driver.common(0x15, 1) == generation + 1
    assert driver.guest.interrupts[IrqIndex.MSIX, 0] == 1


def test_other_requests_of_the_back_end_are_refused(start: Start, attach: Attach) -> None:
    program = start()
    driver = attach()
    program.tell(3, bytes(40), flags=9)
    driver.guest.poll(PATIENCE)
    assert program.channel is not None
    assert program.channel.recv(100)[12:] == (1).to_bytes(8, "little")


def test_a_disk_has_as_many_queues_as_the_device(start: Start, attach: Attach) -> None:
    start(config=bytes(range(60)))
    assert attach(type="blk", queues=3).config(34, 2) == 3


@pytest.mark.parametrize("protocol", [EVERYTHING, EVERYTHING & ~ProtocolFeature.CONFIG])
def test_a_folder_has_its_tag_and_a_card_its_address_whatever_the_back_end_says(
    start: Start, attach: Attach, protocol: ProtocolFeature
) -> None:
    start(protocol=protocol, config=bytes(60))
    folder = attach(type="fs", tag="host", queues=3)
    assert folder.config(0, 4) == int.from_bytes(b"host", "little")
    assert folder.config(36, 4) == 2
    folder.close()
    card = attach(type="net", mac="52:54:00:12:34:56", mtu=1400)
    assert card.config(0, 4) == 0x12005452
    assert (card.config(6, 2), card.config(10, 2)) == (1, 1400)
    assert {3, 5, 16} <= card.offered()
    card.close()
    assert 5 not in attach(type="net").offered(), "the back end has an address, but cannot tell it"


# -- wires


def test_without_msix_the_line_rises(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.guest.config_write(driver.device.core.config.at[pci.MSIX] + 2, 0, 2)
    driver.start()
    driver.queues[0].send(b"a", write=1)
    until(driver, lambda: driver.guest.line)
    assert driver.isr() == 1


def test_an_interrupt_that_the_guest_masks_stays_pending(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.start()
    control = driver.device.core.config.at[pci.MSIX] + 2
    driver.guest.config_write(control, 0xC000, 2)
    driver.queues[0].send(b"a", write=1)
    until(driver, lambda: driver.device.core.signals.is_pending(1))
    assert not driver.guest.interrupts
    driver.guest.config_write(control, 0x8000, 2)
    assert driver.guest.interrupts[VECTOR] == 1
    driver.queues[0].send(b"b", write=1)
    until(driver, lambda: driver.guest.interrupts[VECTOR] == 2)


def test_rings_pause_while_bus_mastering_is_off(start: Start, attach: Attach) -> None:
    program = start()
    driver = attach()
    driver.start()
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    assert program.said[-2:] == ["GET_VRING_BASE", "SET_VRING_ENABLE"]
    driver.queues[0].send(b"wait", write=4)
    assert driver.queues[0].answers() == []
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE | pci.BUS_MASTER, 2)
    assert answers(driver) == [b"tiaw"]


def test_a_reset_takes_the_rings_back_first(start: Start, attach: Attach) -> None:
    program = start(holds=True)
    driver = attach()
    driver.start()
    queue = driver.queues[0]
    queue.send(b"held", write=4)
    until(driver, lambda: program.rings[0].held)
    driver.status = Status(0)
    assert queue.answers() == [b"dleh"], "the back end has finished what it had begun"
    assert program.said[-3:] == ["GET_VRING_BASE", "SET_VRING_ENABLE", "RESET_DEVICE"]
    program.holds = False
    driver.start()
    driver.queues[0].send(b"again", write=5)
    assert answers(driver) == [b"niaga"]


def test_a_snapshot_has_the_place_at_which_the_back_end_stopped(start: Start, attach: Attach) -> None:
    start()
    driver = attach()
    driver.start()
    for _ in range(3):
        driver.queues[0].send(b"ab", write=2)
        assert answers(driver) == [b"ba"]
    snapshot = driver.guest.snapshot()
    assert driver.device.virtqueues[0].next == 3
    driver.guest.advance()
    driver.queues[0].send(b"cd", write=2)
    assert answers(driver) == [b"dc"], "the rings go on"
    driver.status = Status(0)
    queue = driver.queues[0]
    assert isinstance(queue, SplitQueue)
    queue.set_word(queue.avail + 2, 3)  # as the memory of a restored guest
    queue.set_word(queue.ring + 2, 3)
    queue.available = queue.seen = 3
    driver.guest.restore(snapshot)
    driver.queues[0].send(b"ef", write=2)
    assert answers(driver) == [b"fe"]


# -- a back end that is not there, or not enough


def test_without_a_back_end_there_is_no_device(attach: Attach) -> None:
    with pytest.raises(BackendError, match=r"no back end at .*/sock: No such file or directory"):
        attach()


def test_a_back_end_that_accepts_nobody_is_told_from_one_that_is_not_there(attach: Attach, place: Path) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(place))
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(place))
        with pytest.raises(BackendError, match="/sock does not accept connections"):
            attach()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"features": PROTOCOL_FEATURES}, "lacks VIRTIO_F_VERSION_1"),
        ({"queues": 1}, "the back end has 1 queues, and 3 are wanted"),
    ],
)
def test_a_back_end_that_lacks_something_is_refused(
    start: Start, attach: Attach, options: dict[str, Any], why: str
) -> None:
    start(**options)
    with pytest.raises(BackendError, match=why):
        attach(type="42", queues=3)


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": EVERYTHING & ~ProtocolFeature.CONFIG},
        {"protocol": EVERYTHING & ~ProtocolFeature.BACKEND_REQ},
        {"features": VERSION_1},
        {"config": b""},
    ],
)
def test_a_back_end_that_does_not_tell_how_large_its_disk_is_is_refused(
    start: Start, attach: Attach, options: dict[str, Any]
) -> None:
    start(**options)
    with pytest.raises(BackendError, match="no configuration, of which blk has 60 bytes"):
        attach(type="blk")


def test_a_console_and_types_without_a_name_can_do_without_a_configuration(start: Start, attach: Attach) -> None:
    start(features=VERSION_1)
    for name in ("console", "42", "rng"):
        driver = attach(type=name)
        assert driver.config(0, 4) == 0
        driver.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backend": "udp:x"}, "unix:PATH"),
        ({"backend": "unix:" + "x" * 200}, "at most 107 bytes"),
        ({"backend": ""}, "vhost needs backend="),
        ({"backend": "unix:x", "type": "toaster"}, "net, blk"),
        ({"backend": "unix:x", "type": "64"}, "1 to 63"),
        ({"backend": "unix:x", "type": "fs", "tag": "x" * 37}, "1 to 36 bytes"),
        ({"backend": "unix:x", "type": "net", "queues": 3}, "a card has 2"),
        ({"backend": "unix:x", "type": "fs", "queues": 1}, "fs has 2 or more"),
        ({"backend": "unix:x", "type": "vsock", "queues": 2}, "vsock has 3"),
        ({"backend": "unix:x", "type": "rng", "tag": "x"}, "only type=fs has one"),
        ({"backend": "unix:x", "type": "fs", "mac": "52:54:00:12:34:56"}, "only type=net has one"),
        ({"backend": "unix:x", "type": "42", "mtu": 900}, "only type=net has one"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        Vhost(**options)


def test_a_refused_ring_breaks_the_device_until_a_reset(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = bytes.fromhex("09000000 05000000 08000000 0100000000000000")
    program = start(answer=lambda request: refusal if request.name == "SET_VRING_ADDR" else None)
    driver = attach()
    driver.start()
    assert Status.NEEDS_RESET in driver.status
    assert "refuses SET_VRING_ADDR (result 1); the device needs a reset" in caplog.text
    program.answer = lambda _: None
    driver.start()
    driver.queues[0].send(b"ab", write=2)
    assert answers(driver) == [b"ba"]


def test_an_error_in_a_ring_breaks_the_device(start: Start, attach: Attach) -> None:
    program = start()
    driver = attach()
    driver.start()
    program.do(lambda: os.eventfd_write(program.errors[0], 1))
    until(driver, lambda: Status.NEEDS_RESET in driver.status)


@pytest.mark.parametrize("base", [1 << 16, 1 << 31])
def test_a_place_that_cannot_be_ends_the_connection(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture, base: int
) -> None:
    wrong = bytes.fromhex("0b000000 05000000 08000000 00000000") + base.to_bytes(4, "little")
    program = start()
    driver = attach()
    driver.start()
    program.answer = lambda request: wrong if request.name == "GET_VRING_BASE" else None
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    assert "has stopped at" in caplog.text
    program.answer = lambda _: None
    until(driver, lambda: "a back end is there again" in caplog.text)
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE | pci.BUS_MASTER, 2)
    driver.queues[0].send(b"ab", write=2)
    assert answers(driver) == [b"ba"]
