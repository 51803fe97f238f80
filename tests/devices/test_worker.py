"""A worker and its client over a real socket: order, rings, resets, failures, and who is served when."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from bellwire import Bar, PciDevice
from bellwire.bundled.bell import Bell
from bellwire.serve.worker import Worker
from devices.serving import (
    MSIX,
    PATIENCE,
    Probe,
    eventfd,
    heard,
    no_more_fds,
    read,
    running,
    served,
    sub_regions,
    write,
)
from vfio_user import (
    Client,
    Command,
    IoCommand,
    IoEventFd,
    IoRegionClient,
    IoRegionFd,
    IrqIndex,
    Mechanism,
    RegionIndex,
    RemoteError,
    ShadowIoEventFd,
)
from vfio_user.channel import HEADER
from vfio_user.ioregionfd import decode_response, encode_command

ALL_ONES = (1 << 64) - 1


def test_a_read_flushes_rings() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        for expected in range(1, 50):
            os.eventfd_write(subs[Probe.bell.offset].fd, 1)
            read(client, Probe.scratch.offset)
            assert device.bell.rung == expected


def test_a_ring_sees_every_write_posted_before_it() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        for value in range(1, 200):
            write(client, Probe.scratch.offset, value, posted=True)
            os.eventfd_write(subs[Probe.bell.offset].fd, 1)
            read(client, Probe.scratch.offset)
            assert device.seen[-1] == ("ring", value, value)


def test_a_device_knows_whether_a_client_is_there() -> None:
    device = Probe()
    before = device.connected
    with served(device) as client:
        read(client, Probe.scratch.offset)
        during = device.connected
    assert (before, during, device.connected) == (False, True, False)


def test_rings_coalesce_and_none_is_lost() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        for _ in range(1000):
            os.eventfd_write(subs[Probe.bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        assert device.bell.rung == 1000
        assert 1 <= len(device.seen) <= 1000


def test_a_message_rings_too() -> None:
    device = Probe()
    with served(device) as client:
        write(client, Probe.bell.offset, 7)
        assert device.bell.rung == 1


def test_values_by_ioregionfd_come_in_order() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        sub = subs[Probe.value_bell.offset]
        assert isinstance(sub, IoRegionFd)
        assert sub.posted_writes
        wire = IoRegionClient(sub.fd)
        for value in range(1000):
            wire.post(sub.user_data, 0, value.to_bytes(4, "little"))
        wire.close()
        read(client, Probe.scratch.offset)
        assert device.seen == [("value", value) for value in range(1000)]


def test_an_acknowledged_write_has_been_handled_when_it_returns() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        sub = subs[Probe.window.offset]
        wire = IoRegionClient(sub.fd)
        wire.write(0, 4, b"\x34\x12")
        assert device.seen == [("window", 4, 2, 0x1234)]
        assert wire.read(0, 8, 4) == 0x5566_7788.to_bytes(4, "little")
        wire.close()


def test_an_ioregion_command_outside_its_stretch_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        wire = IoRegionClient(subs[Probe.window.offset].fd)
        wire.write(9, 0, b"\1")
        wire.write(0, 15, b"\1\2")
        assert wire.read(9, 0, 4) == b"\xff" * 4
        assert device.seen == []
        wire.close()
    assert {record.levelname for record in caplog.records if "lies in no sub-region" in record.message} == {"WARNING"}
    assert device.core.tally.failures == 0  # it is the client's


def test_the_same_stretch_is_handed_over_by_the_same_fd() -> None:
    with served(Probe()) as client, sub_regions(client) as once, sub_regions(client) as again:
        assert os.path.sameopenfile(once[Probe.window.offset].fd, again[Probe.window.offset].fd)
        assert not os.path.sameopenfile(once[Probe.window.offset].fd, again[Probe.value_bell.offset].fd)


@pytest.mark.parametrize(("nonsense", "other"), [("value_bell", "window"), ("window", "value_bell")])
def test_a_socket_that_brings_nonsense_is_closed_and_a_new_one_is_handed_over(nonsense: str, other: str) -> None:
    spoilt, kept = (getattr(Probe, name).offset for name in (nonsense, other))
    device = Probe()
    with served(device) as client, sub_regions(client) as before:
        with socket.socket(fileno=os.dup(before[spoilt].fd)) as wire:
            wire.send(b"\xff" * 32)
            wire.settimeout(PATIENCE)
            assert wire.recv(1) == b"", "closed at the device's end"
        with sub_regions(client) as after:
            assert not os.path.sameopenfile(before[spoilt].fd, after[spoilt].fd)
            assert os.path.sameopenfile(before[kept].fd, after[kept].fd)
            for sub in after.values():
                if isinstance(sub, IoRegionFd):
                    with contextlib.closing(IoRegionClient(sub.fd)) as wire:
                        wire.write(sub.user_data, 0, b"\x34\x12\0\0")
        assert sorted(map(str, device.seen)) == ["('value', 4660)", "('window', 0, 4, 4660)"]


def test_a_client_without_ioregionfd_gets_eventfds_only() -> None:
    with served(Bell()) as client, sub_regions(client, Bell.bells.index) as subs:
        assert {type(sub) for sub in subs.values()} == {IoEventFd, IoRegionFd, ShadowIoEventFd}
    proposal = client.capabilities.of(max_msg_fds=16, io_fds=frozenset(["ioeventfd"]))
    with served(Bell(), proposal=proposal) as client, sub_regions(client, Bell.bells.index) as subs:
        assert client.mechanisms == frozenset([Mechanism.IOEVENTFD])
        assert {type(sub) for sub in subs.values()} == {IoEventFd}


def test_a_reset_voids_rings_but_answers_whoever_waits() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        window = socket.socket(fileno=os.dup(subs[Probe.window.offset].fd))
        write(client, Probe.blocks.offset, 1, posted=True)
        assert device.blocked.wait(PATIENCE)  # from here on, all of this waits for the worker
        os.eventfd_write(subs[Probe.bell.offset].fd, 5)
        window.send(encode_command(IoCommand(write=False, size=4, respond=True, user_data=0, offset=0)))
        os.write(client.fileno(), HEADER.pack(0x7777, Command.DEVICE_RESET, HEADER.size, 0, 0))
        device.go_on.set()
        window.settimeout(PATIENCE)
        assert decode_response(window.recv(32)) == ALL_ONES
        window.close()
        read(client, Probe.scratch.offset)
        assert device.bell.rung == 0
        assert device.seen == []


def test_a_doorbell_with_values_reads_the_same_by_every_way() -> None:
    class Full(PciDevice, vendor=0x1234, device=0x12, class_code=0xFF0000):
        mmio = Bar(0, size=64, fill=0xA5)
        bell = mmio.doorbell(0x10, size=8, value=True)

        @bell.ring
        def rung(self, value: int) -> None: ...

    with served(Full()) as client, sub_regions(client) as subs:
        assert client.read(0, 0x10, 4) == b"\xa5" * 4
        sub = subs[0x10]
        assert isinstance(sub, IoRegionFd)
        with contextlib.closing(IoRegionClient(sub.fd)) as wire:
            assert wire.read(sub.user_data, 0, 4) == b"\xa5" * 4
            assert wire.read(sub.user_data, 0, 8) == b"\xa5" * 8


def test_a_device_without_descriptors_for_its_doorbells_refuses_and_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        client.region_info(0)
        with no_more_fds(), pytest.raises(RemoteError) as refused:
            client.io_fds(0)
        assert refused.value.errno == errno.EIO
        with sub_regions(client) as subs:
            assert Probe.bell.offset in subs
    assert "Too many open files" in caplog.text


def test_an_interrupt_with_nobody_to_hear_it_is_kept() -> None:
    with served(Probe()) as client, eventfd() as bell:
        write(client, Probe.trigger.offset, 2)
        client.trigger_eventfds(MSIX, 2, [bell])
        assert heard(bell) == 1
        write(client, Probe.trigger.offset, 2)
        assert heard(bell) == 1


def test_intx_is_raised_again_while_it_stays_up() -> None:
    with served(Probe()) as client, eventfd() as line, eventfd() as resample:
        client.trigger_eventfds(IrqIndex.INTX, 0, [line])
        client.unmask_eventfd(resample)
        write(client, Probe.raise_line.offset, 1)
        assert heard(line) == 1
        for _ in range(5):
            os.eventfd_write(resample, 1)
            assert heard(line) == 1
        write(client, Probe.raise_line.offset, 0)
        os.eventfd_write(resample, 1)
        read(client, Probe.scratch.offset)
        assert heard(line, 0.05) == 0


def test_reset_returns_registers_to_their_power_on_values() -> None:
    with served(Probe()) as client:
        write(client, Probe.scratch.offset, 77)
        client.reset()
        assert read(client, Probe.scratch.offset) == 0


def test_the_next_client_finds_the_state_of_the_last(tmp_path: Path) -> None:
    with Listener(tmp_path) as (path, sock), running(Worker(Probe(), sock)):
        with Client.connect(path) as first:
            write(first, Probe.scratch.offset, 41)
        with Client.connect(path) as second:
            assert read(second, Probe.scratch.offset) == 41


def test_a_second_client_waits_its_turn(tmp_path: Path) -> None:
    with Listener(tmp_path) as (path, sock), running(Worker(Probe(), sock)):
        first = Client.connect(path)
        late: list[int] = []

        def wait_and_read() -> None:
            with Client.connect(path, timeout=30) as second:
                late.append(read(second, Probe.scratch.offset))

        other = threading.Thread(target=wait_and_read)
        other.start()
        for value in range(100):
            write(first, Probe.scratch.offset, value)
        assert not late
        first.close()
        other.join()
        assert late == [99]


def test_a_client_that_leaves_takes_its_memory_and_fds_along(tmp_path: Path, open_fds: set[int]) -> None:
    with Listener(tmp_path) as (path, sock), running(Worker(Probe(), sock)):
        with Client.connect(path) as warm:
            read(warm, Probe.scratch.offset)
        with Client.connect(path) as settled:
            read(settled, Probe.scratch.offset)
            before = fds()
            with eventfd() as bell, sub_regions(settled):
                memory = os.memfd_create("ram")
                os.ftruncate(memory, 1 << 20)
                settled.dma_map(0, 1 << 20, memory)
                settled.trigger_eventfds(MSIX, 0, [bell, bell])
                assert len(maps("memfd:ram")) == 1
                settled.close()
                os.close(memory)
                with Client.connect(path) as after:
                    read(after, Probe.scratch.offset)
                    assert maps("memfd:ram") == []
        assert fds() <= before
    assert fds() == len(open_fds)


def test_a_worker_leaves_nothing_behind(open_fds: set[int]) -> None:
    threads = threading.active_count()
    with served(Probe()) as client, sub_regions(client):
        read(client, Probe.scratch.offset)
    assert threading.active_count() == threads
    assert fds() == len(open_fds)


def test_stop_ends_a_worker_that_waits_for_its_first_client(tmp_path: Path) -> None:
    with Listener(tmp_path) as (_, sock), running(Worker(Probe(), sock)):
        pass


def test_function_level_reset_comes_through_config_space() -> None:
    with served(Probe()) as client:
        write(client, Probe.scratch.offset, 5)
        config = client.read(RegionIndex.CONFIG, 0, 256)
        at = config[0x34]
        while config[at] != 0x10:
            at = config[at + 1]
        client.write(RegionIndex.CONFIG, at + 8, (0x8000).to_bytes(2, "little"))
        assert read(client, Probe.scratch.offset) == 0


def test_garbage_on_the_socket_ends_the_connection_and_not_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Listener(tmp_path) as (path, sock), running(Worker(Probe(), sock)):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(os.fspath(path))
            raw.sendall(b"\xff" * 64)
            while raw.recv(4096):
                pass
        with Client.connect(path) as client:
            assert read(client, Probe.scratch.offset) == 0
    assert "message size" in caplog.text


# -- helpers


class Listener:
    """A listening socket in a folder of the test's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(os.fspath(self.path))
        self.sock.listen()

    def __enter__(self) -> tuple[Path, socket.socket]:
        return self.path, self.sock

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]


def test_a_vector_is_pending_until_the_client_has_an_eventfd_for_it() -> None:
    probe = Probe()
    with served(probe) as client, eventfd() as fd:
        write(client, Probe.trigger.offset, 2)
        assert probe.core.signals.is_pending(2)
        client.trigger_eventfds(IrqIndex.MSIX, 2, [fd])
        assert heard(fd) == 1
        assert not probe.core.signals.is_pending(2)
