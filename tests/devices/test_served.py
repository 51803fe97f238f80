"""What a worker tells of its clients, what it counts, and what a client finds."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path
from typing import Any

import pytest

from bellwire.serve.observer import Observer
from bellwire.serve.worker import Worker
from devices.serving import MSIX, PATIENCE, Probe, eventfd, heard, read, running, sub_regions, wait_until, write
from vfio_user import PROPOSAL, Capabilities, Client, IrqIndex, RegionIndex

PAGE = 4096


class Listener(Observer):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def connected(self, pid: int, uid: int) -> None:
        self.heard.append(("connected", pid, uid))

    def introduced(self, client: Capabilities) -> None:
        self.heard.append(("introduced", client.max_msg_fds))

    def mapped(self, maps: int, size: int) -> None:
        self.heard.append(("mapped", maps, size))

    def left(self, reason: str) -> None:
        self.heard.append(("left", reason))

    def failed(self, error: BaseException) -> None:
        self.heard.append(("failed", type(error).__name__))

    def trouble(self, text: str) -> None:
        self.heard.append(("trouble", text.partition(" (")[0]))


def test_a_client_that_is_disconnected_while_its_messages_lie_unread_reads_an_end_of_file() -> None:
    device, (ours, theirs) = Probe(), socket.socketpair()
    worker = Worker(device, connection=theirs)
    with running(worker), Client(ours) as client:
        write(client, Probe.blocks.offset, 1, posted=True)
        assert device.blocked.wait(PATIENCE)
        write(client, Probe.scratch.offset, 1, posted=True)
        worker.stop()
        device.go_on.set()
        assert select.select([client], [], [], PATIENCE)[0]
        assert ours.recv(1) == b""


def test_clients_are_told_of_one_after_the_other(tmp_path: Path) -> None:
    listener, observer = socket.socket(socket.AF_UNIX), Listener()
    with listener:
        listener.bind(os.fspath(tmp_path / "d.sock"))
        listener.listen()
        worker = Worker(Probe(), listener, observer=observer)
        with running(worker):
            for _ in range(2):
                with Client.connect(tmp_path / "d.sock") as client:
                    client.dma_map(0, PAGE)
                    client.dma_map(1 << 20, 3 * PAGE)
                    client.dma_unmap(0, PAGE)
                    assert worker.served.statistics()["dma_maps"] == 1
                    assert worker.served.statistics()["connected"] == 1
                    read(client, Probe.scratch.offset)
                wait_until(lambda: observer.heard[-1][0] == "left")
        numbers = worker.device.core.tally.to_dict()
    once = [
        ("connected", os.getpid(), os.getuid()),
        ("introduced", 253),
        ("mapped", 1, PAGE),
        ("mapped", 2, 4 * PAGE),
        ("mapped", 1, 3 * PAGE),
        ("left", "the peer has closed the connection"),
    ]
    assert observer.heard == once * 2
    assert (numbers["clients"], numbers["reads"], numbers["writes"]) == (2, 2, 0)


def test_mistakes_of_guest_and_device_are_told_and_counted() -> None:
    ours, theirs = socket.socketpair()
    observer, device = Listener(), Probe()
    with running(Worker(device, connection=theirs, observer=observer)), Client(ours, proposal=PROPOSAL) as client:
        write(client, Probe.fails.offset, 1, posted=True)
        write(client, Probe.fetch.offset, 1 << 40, size=8, posted=True)
        read(client, Probe.scratch.offset)
        kinds = [each for each in observer.heard if each[0] == "failed"]
    assert len(kinds) == 2
    assert ("failed", "GuestError") in kinds
    assert sum(each[0] == "trouble" for each in observer.heard) == 2
    assert (device.core.tally.guest_errors, device.core.tally.failures) == (1, 1)


def test_the_next_client_gets_the_interrupts_that_wait(tmp_path: Path) -> None:
    device = Probe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "d.sock"))
        listener.listen()
        with running(Worker(device, listener)):
            with Client.connect(tmp_path / "d.sock") as client:
                client.write(RegionIndex.CONFIG, 4, b"\x06\x00")
                write(client, Probe.raise_line.offset, 1)
                write(client, Probe.trigger.offset, 2)
                read(client, Probe.scratch.offset)
            with Client.connect(tmp_path / "d.sock") as client, eventfd() as line, eventfd() as vector:
                client.trigger_eventfds(IrqIndex.INTX, 0, [line])
                client.trigger_eventfds(MSIX, 2, [vector])
                assert (heard(line), heard(vector)) == (1, 1)


def test_a_device_says_which_regions_and_interrupts_it_has() -> None:
    ours, theirs = socket.socketpair()
    with running(Worker(Probe(), connection=theirs)), Client(ours) as client:
        info = client.device_info()
        assert (int(info.flags), info.num_regions, info.num_irqs) == (3, 9, 5)
        regions = [client.region_info(index) for index in range(9)]
        assert [region.info.size for region in regions] == [4096, 0, 0, 0, 0, 4096, 0, 4096, 0]
        assert [int(region.info.flags) for region in regions] == [3, 0, 0, 0, 0, 3, 0, 3, 0]
        assert {region.fd for region in regions} == {None}
        irqs = [client.irq_info(index) for index in range(5)]
        assert [irq.count for irq in irqs] == [1, 0, 4, 1, 1]
        assert [int(irq.flags) for irq in irqs] == [7, 3, 3, 3, 3]


@pytest.mark.parametrize("introduced", [True, False])
def test_statistics_without_a_client_are_those_of_the_device(introduced: bool) -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Probe(), connection=theirs)
    with running(worker):
        if introduced:
            with Client(ours) as client:
                read(client, Probe.scratch.offset)
        ours.close()
        wait_until(lambda: worker.served.session is None)
    numbers = worker.served.statistics()
    assert (numbers["connected"], numbers["dma_maps"], numbers["clients"]) == (0, 0, 1)
    assert numbers["reads"] == introduced


def test_a_reset_by_an_operator_drops_rings() -> None:
    ours, theirs = socket.socketpair()
    device = Probe()
    worker = Worker(device, connection=theirs)
    with running(worker), Client(ours) as client, sub_regions(client) as subs:

        def ring_and_reset() -> None:
            os.eventfd_write(subs[Probe.bell.offset].fd, 3)
            worker.served.reset()

        worker.loop._finished.append(ring_and_reset)
        worker.loop.wake()
        wait_until(lambda: device.core.tally.resets == 2)
        read(client, Probe.scratch.offset)
        assert (device.bell.rung, device.seen) == (0, [])


def test_a_worker_that_stops_lets_its_client_go_before_it_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    order: list[str] = []
    observer, device = Listener(), Probe()
    monkeypatch.setattr(observer, "left", order.append)
    usual = device.core.reset

    def reset() -> None:
        order.append("reset")
        usual()

    monkeypatch.setattr(device.core, "reset", reset)
    worker = Worker(device, connection=theirs, observer=observer)
    with running(worker), Client(ours) as client:
        read(client, Probe.scratch.offset)
        worker.stop()
        wait_until(lambda: len(order) == 3)
    assert order == ["reset", "the device is being stopped", "reset"]
