"""Snapshots that no device can have given: refused, and the device is as after a reset."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import StateError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.serial import Serial
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.testing import Guest
from bellwire.virtio import Feature
from nvme.driver import Driver as NvmeDriver
from nvme.driver import TestMachine
from virtio.driver import Driver as VirtioDriver

MEMORY = 1 << 20


def refused(guest: Guest[Any], why: str) -> None:
    core = guest.device.core
    snapshot = core.snapshot()
    core.reset()
    clean = core.snapshot()
    with pytest.raises(StateError, match=why):
        core.restore(snapshot)
    assert core.snapshot() == clean
    guest.advance(1)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("tail", 9, "submission queue 1 of 8 entries, head 0, tail 9"),
        ("head", 8, "submission queue 1 of 8 entries, head 8, tail 0"),
        ("size", 1, "submission queue 1 of 1 entries"),
        ("size", 1 << 20, "submission queue 1 of 1048576 entries"),
        ("cqid", 3, "submission queue 1 whose completion queue is 3"),
        ("cqid", 1 << 31, "submission queue 1 whose completion queue is"),
    ],
)
def test_nvme_refuses_a_submission_queue_that_cannot_be(field: str, value: int, why: str) -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 20, queues=4) as guest:
        driver = NvmeDriver(TestMachine(guest))
        driver.enable()
        driver.create_queues(1, 8)
        setattr(guest.device.controller.queues.submissions[1], field, value)
        refused(guest, why)


@pytest.mark.parametrize(("field", "value"), [("head", 8), ("tail", 8), ("phase", 2), ("vector", 65), ("size", 3000)])
def test_nvme_refuses_a_completion_queue_that_cannot_be(field: str, value: int) -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 20, queues=4) as guest:
        driver = NvmeDriver(TestMachine(guest))
        driver.enable()
        driver.create_queues(1, 8)
        setattr(guest.device.controller.queues.completions[1], field, value)
        refused(guest, "the snapshot has completion queue 1 of")


def test_nvme_refuses_commands_of_no_queue_and_too_many_event_requests() -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 20) as guest:
        NvmeDriver(TestMachine(guest)).enable()
        guest.device.journal_state[:8] = b"\1\0\0\0\7\0\0\0"
        refused(guest, "a command of submission queue 7")
    with Guest(Nvme, memory=MEMORY, size=1 << 20) as guest:
        guest.device.event_state[:4] = b"\xff\0\0\0"
        refused(guest, "255 event requests")


@pytest.mark.parametrize(
    ("field", "value"), [("next", 8), ("used", 8), ("out", 9), ("size", 0), ("next_wrap", 2), ("vector", 99)]
)
def test_virtio_refuses_a_queue_that_cannot_be(field: str, value: int) -> None:
    with VirtioDriver(VirtioRng, memory=MEMORY) as driver:
        driver.start({Feature.RING_PACKED}, size=8)
        setattr(driver.device.virtqueues[0], field, value)
        refused(driver.guest, "the snapshot has queue 0 of")


def test_virtio_refuses_features_that_it_does_not_offer() -> None:
    with VirtioDriver(VirtioRng, memory=MEMORY) as driver:
        driver.start(size=8)
        driver.device.accepted |= 1 << 60
        refused(driver.guest, "the snapshot has features 0x10")


def test_serial_refuses_more_bytes_than_its_fifos_hold_and_registers_of_other_widths() -> None:
    with Guest(Serial, memory=MEMORY) as guest:
        guest.device.received_bytes[0] = 17
        refused(guest, "FIFOs of 17 and 0 bytes")
        guest.device.fcr = 0x7FFF
        refused(guest, "FCR 0x7fff")
