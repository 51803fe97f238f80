"""A client that has shared eventfds block, and sees to it that a read finds nothing or a write no room."""

from __future__ import annotations

import os
import threading

import pytest

from bellwire.serve.sources import EventSource
from devices.serving import MSIX, PATIENCE, Probe, read, served, sub_regions, write
from vfio_user.eventfds import SIZE, take

FULL = (1 << 64) - 2


@pytest.mark.usefixtures("impatient")
def test_a_ring_that_was_taken_back_is_not_waited_for() -> None:
    device = Probe()
    device.setup()
    source = EventSource(device.core, Probe.bell, device.core.ring, lambda ring, *rung: ring(*rung))
    os.set_blocking(source.fd, True)
    source.gather()
    source.run()
    assert device.bell.rung == 0
    os.eventfd_write(source.fd, 3)
    source.gather()
    source.run()
    assert device.bell.rung == 3
    source.close()


def test_a_client_that_takes_its_rings_back_all_the_time_is_served() -> None:
    with served(Probe()) as client, sub_regions(client) as subs:
        bell, over = subs[Probe.bell.offset].fd, threading.Event()
        os.set_blocking(bell, True)

        def steal() -> None:
            counter = bytearray(SIZE)
            while not over.is_set():
                os.eventfd_write(bell, 1)
                take(bell, counter)

        thief = threading.Thread(target=steal, name="thief")
        thief.start()
        try:
            for value in range(300):
                write(client, Probe.scratch.offset, value)
                assert read(client, Probe.scratch.offset) == value
        finally:
            over.set()
            thief.join(PATIENCE)
            os.eventfd_write(bell, 1)  # lets a worker go that waits for it


def test_an_interrupt_that_cannot_be_written_holds_nobody_up() -> None:
    with served(Probe()) as client:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        os.eventfd_write(fd, FULL)
        client.trigger_eventfds(MSIX, 0, [fd])
        try:
            write(client, Probe.trigger.offset, 0)
            assert read(client, Probe.scratch.offset) == 0
        finally:
            take(fd, bytearray(SIZE))  # lets a worker go that waits for room
            os.close(fd)
