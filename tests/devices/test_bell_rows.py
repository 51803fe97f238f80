"""Rows of doorbells: by value as one stretch, or each by an event of its own."""

from __future__ import annotations

import os
import threading

import pytest

from bellwire import Bar, DeclarationError, PciDevice
from devices.serving import PATIENCE, served, sub_regions, write
from vfio_user import Capabilities, IoEventFd, IoRegionFd


class Row(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """Sixteen doorbells."""

    mmio = Bar(0, size=4096)
    bells = mmio.ioregion(0x100, 64, posted=True, bell=4)
    events = False

    def setup(self) -> None:
        self.seen: list[object] = []
        self.rang = threading.Event()
        if self.events:
            self.ring_by_event(Row.bells)

    @bells.write
    def rung_with(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))
        self.rang.set()

    @bells.ring
    def rung(self, offset: int) -> None:
        self.seen.append(offset)
        self.rang.set()


class EventRow(Row):
    """The same, by events."""

    events = True


PROPOSAL = Capabilities.of(io_fds=frozenset(("ioeventfd", "ioregionfd")), max_msg_fds=16)


def test_a_row_is_one_stretch_unless_the_device_says_otherwise() -> None:
    with served(Row(), proposal=PROPOSAL) as client, sub_regions(client) as found:
        assert [(type(sub), sub.size) for sub in found.values()] == [(IoRegionFd, 64)]


def test_a_row_by_event_has_an_eventfd_for_each_doorbell() -> None:
    with served(EventRow(), proposal=PROPOSAL) as client, sub_regions(client) as found:
        assert sorted(found) == list(range(0x100, 0x140, 4))
        assert all(isinstance(sub, IoEventFd) and sub.size == 0 for sub in found.values())
        assert len({sub.fd for sub in found.values()}) == 16


def test_an_event_runs_the_ring_hook_with_its_offset() -> None:
    device = EventRow()
    with served(device, proposal=PROPOSAL) as client, sub_regions(client) as found:
        os.eventfd_write(found[0x108].fd, 2)
        assert device.rang.wait(PATIENCE)
        assert device.seen == [8]


def test_a_message_still_brings_the_value() -> None:
    device = EventRow()
    with served(device, proposal=PROPOSAL) as client:
        write(client, 0x10C, 7)
        assert device.seen == [(12, 4, 7)]
    rings = device.core.tally.rings
    assert (rings["message"], rings["ioregionfd"]) == ({"bells": [1]}, {})


def test_a_client_without_eventfds_gets_the_stretch() -> None:
    proposal = Capabilities.of(io_fds=frozenset(("ioregionfd",)))
    with served(EventRow(), proposal=proposal) as client, sub_regions(client) as found:
        assert [type(sub) for sub in found.values()] == [IoRegionFd]


def test_only_a_row_rings_by_event() -> None:
    class Plain(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000, name="plain-stretch"):
        mmio = Bar(0, size=4096)
        stretch = mmio.ioregion(0x100, 64)

    with pytest.raises(DeclarationError, match="only an ioregion with bell="):
        Plain().ring_by_event(Plain.stretch)


def test_a_row_that_no_client_could_register_is_refused() -> None:
    with pytest.raises(DeclarationError, match="multiples of bell=4"):

        class Crooked(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000, name="crooked-row"):
            mmio = Bar(0, size=4096)
            row = mmio.ioregion(0x102, 64, bell=4)
