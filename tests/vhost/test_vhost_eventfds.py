"""A back end fills the eventfds that it shares with the device, and sets them to blocking: the device never waits."""

from __future__ import annotations

import contextlib
import os

import pytest

from bellwire.model import capabilities as pci
from vhost.program import Program
from vhost.test_vhost_device import VECTOR, Attach, Start
from virtio.driver import Driver

pytestmark = pytest.mark.usefixtures("impatient")

FULL = 0xFFFF_FFFF_FFFF_FFFE
MASKED, UNMASKED = 0xC000, 0x8000


def fill(program: Program, which: str, *, blocking: bool) -> None:
    """Fill the eventfd of the first ring: its kick or its call."""

    def work() -> None:
        ring = program.rings[0]
        ring.enabled = False  # it is left alone from now on
        fd = getattr(ring, which)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        os.eventfd_write(fd, FULL)
        os.set_blocking(fd, blocking)

    program.do(work)


def mask(driver: Driver, control: int) -> None:
    driver.guest.config_write(driver.device.core.config.at[pci.MSIX] + 2, control, 2)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_ring_by_message_finds_a_full_kick(start: Start, attach: Attach, blocking: bool) -> None:
    program = start()
    driver = attach()
    driver.start()
    fill(program, "kick", blocking=blocking)
    driver.queues[0].send(b"ab", write=2)


def test_an_unmask_finds_an_empty_call_that_is_blocking(start: Start, attach: Attach) -> None:
    program = start()
    driver = attach()
    driver.start()
    mask(driver, MASKED)
    program.do(lambda: os.set_blocking(program.rings[0].call, True))
    mask(driver, UNMASKED)
    assert not driver.guest.interrupts[VECTOR]
