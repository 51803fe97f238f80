"""What a device has been used for, in numbers: by register, doorbell and vector, with no clutter on the way there."""

from __future__ import annotations

import os
import socket

from bellwire import Bar, PciDevice
from bellwire.model.labels import Labels
from bellwire.serve.worker import Worker
from bellwire.testing import Guest
from devices.serving import COMMAND, Probe, read, running, served, sub_regions, write
from vfio_user import Client, IoRegionClient, IoRegionFd, RegionIndex, RegionWrite


class Spread(PciDevice, vendor=0x1234, device=0xCAFF, class_code=0x088000):
    """Registers with holes between them."""

    mmio = Bar(0, size=4096)
    low = mmio.reg(0x00)
    high = mmio.reg(0x08, size=8)
    rung = mmio.doorbell(0x20, match=1)
    below = mmio.reg(0x20)
    row = mmio.ioregion(0x100, 0x40, bell=4)

    @rung.ring
    def heard(self) -> None: ...


def test_each_place_of_a_bar_has_the_name_that_its_author_gave_it() -> None:
    at = Labels(Spread.layout).at
    assert at(0, 0x00, 4) == ["low"]
    assert at(0, 0x0C, 4) == ["high"]
    assert at(0, 0x20, 4) == ["rung/below"]
    assert at(0, 0x13C, 8) == ["row", "BAR 0, where nothing is"]
    assert at(0, 0x02, 8) == ["low", "BAR 0, where nothing is", "high"]
    assert at(0, 0x200, 4) == ["BAR 0, where nothing is"]
    assert at(RegionIndex.CONFIG, 0, 4) == ["config space"]
    assert at(RegionIndex.VGA, 0, 4) == ["region 8"]


def test_accesses_are_counted_by_register_however_they_come() -> None:
    device = Probe()
    with served(device, enabled=False) as client:
        client.write(RegionIndex.CONFIG, COMMAND, b"\x06\x00")
        read(client, Probe.scratch.offset)
        write(client, Probe.scratch.offset, 1)
        write(client, Probe.scratch.offset, 2, posted=True)
        client.write_multi([RegionWrite(0, Probe.scratch.offset, bytes(4)), RegionWrite(0, 0x204, bytes(2))])
        read(client, 0x200)
    reads, writes = device.core.tally.accesses[False], device.core.tally.accesses[True]
    assert reads == {"scratch": 1, "BAR 0, where nothing is": 1}
    assert writes == {"config space": 1, "scratch": 3, "BAR 0, where nothing is": 1}
    assert (device.core.tally.reads, device.core.tally.writes) == (2, 5)


def test_what_a_client_did_is_counted_while_it_is_there() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Probe(), connection=theirs)
    with running(worker), Client(ours) as client:
        write(client, Probe.scratch.offset, 1)
        assert worker.served.statistics()["writes"] == 1
        write(client, Probe.scratch.offset, 1)
        assert worker.served.statistics()["writes"] == 2


def test_rings_are_counted_by_doorbell_and_by_the_way_they_come() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        os.eventfd_write(subs[Probe.bell.offset].fd, 3)
        write(client, Probe.bell.offset, 1)
        value_bell = subs[Probe.value_bell.offset]
        assert isinstance(value_bell, IoRegionFd)
        wire = IoRegionClient(value_bell.fd)
        wire.post(value_bell.user_data, 0, bytes(4))
        wire.close()
        read(client, Probe.scratch.offset)
    rings = device.core.tally.rings
    assert rings["ioeventfd"]["bell"] == [3]
    assert rings["message"]["bell"] == [1]
    assert rings["ioregionfd"]["value_bell"] == [1]
    assert device.core.tally.to_dict()["rings_ioeventfd"] == 3


def test_interrupts_are_counted_by_vector() -> None:
    device = Probe()
    with served(device) as client:
        for vector in (1, 3, 3):
            write(client, Probe.trigger.offset, vector)
        for level in (1, 1, 0, 1):
            write(client, Probe.raise_line.offset, level)
    assert device.core.tally.interrupts == {"MSI-X": [0, 1, 0, 2], "MSI": [], "INTx": [2]}
    assert device.core.tally.to_dict()["interrupts"] == 5


def test_dma_is_counted() -> None:
    class Mover(PciDevice, vendor=0x1234, device=0xCAFD, class_code=0x088000):
        mmio = Bar(0, size=4096)

    with Guest(Mover) as guest:
        device = guest.device
        device.dma.read(0, 100)
        device.dma.write(0, bytes(10))
        device.dma.map(0, 4096, write=True)
        device.dma.touched(4)
        assert device.dma.counts == {"dma_read": 100, "dma_written": 10, "dma_in_place": 4100}
