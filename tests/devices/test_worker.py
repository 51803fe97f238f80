"""A worker and its client over a real socket: order, rings, resets, failures, and who is served when."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire import Bar, PciDevice
from bellwire.bundled.bell import Bell
from bellwire.serve.loop import FEW_TIMERS, Deadline
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
    wait_until,
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
    VfioUserError,
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


def test_a_client_without_ioregionfd_gets_eventfds_only() -> None:
    with served(Bell()) as client, sub_regions(client, Bell.bells.index) as subs:
        assert {type(sub) for sub in subs.values()} == {IoEventFd, IoRegionFd}
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


def test_a_hook_that_raises_answers_with_an_error_and_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        for _ in range(3):
            with pytest.raises(RemoteError) as refused:
                write(client, Probe.fails.offset, 7)
            assert refused.value.errno == errno.EIO
        with pytest.raises(RemoteError):
            read(client, Probe.fails.offset)
        write(client, Probe.scratch.offset, 5)
        assert read(client, Probe.scratch.offset) == 5
    writes = [
        record for record in caplog.records if "RuntimeError" in str(record.exc_info) or "hook failed" in record.message
    ]
    assert [record.exc_info is not None for record in writes] == [True, False, False]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 4


def test_a_flood_of_failures_is_logged_a_few_times_only(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        for _ in range(500):
            write(client, Probe.fails.offset, 7, posted=True)
        read(client, Probe.scratch.offset)
    assert 1 <= len([record for record in caplog.records if "hook failed" in record.message]) <= 10


def test_failures_of_device_code_are_counted_apart_from_the_guests_mistakes() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        for _ in range(3):
            write(client, Probe.fails.offset, 7, posted=True)
        os.eventfd_write(subs[Probe.broken_bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        write(client, Probe.fetch.offset, 1 << 40, size=8, posted=True)
        write(client, Probe.fetch.offset, 1 << 41, size=8, posted=True)
        read(client, Probe.scratch.offset)
        assert (device.core.tally.failures, device.core.tally.guest_errors) == (4, 2)


def test_a_bell_that_raises_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        os.eventfd_write(subs[Probe.broken_bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        os.eventfd_write(subs[Probe.bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        assert device.bell.rung == 1
    assert "a bell that breaks" in caplog.text


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


def test_a_hook_that_calls_exit_does_not_end_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client, sub_regions(client) as subs:
        with pytest.raises(RemoteError):
            write(client, Probe.leave.offset, 0)
        for how in (1, 2):
            write(client, Probe.leave.offset, how)
        os.eventfd_write(subs[Probe.leaving_bell.offset].fd, 1)
        write(client, Probe.scratch.offset, 5)
        wait_until(lambda: sum("SystemExit" in message for message in caplog.messages) == 4)
        assert read(client, Probe.scratch.offset) == 5
    assert "a hook leaves" in caplog.text
    assert "a bell leaves" in caplog.text


def test_a_device_without_descriptors_for_its_doorbells_refuses_and_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        client.region_info(0)
        with no_more_fds(), pytest.raises(RemoteError) as refused:
            client.io_fds(0)
        assert refused.value.errno == errno.EIO
        with sub_regions(client) as subs:
            assert Probe.bell.offset in subs
    assert "Too many open files" in caplog.text


class Mistaken(PciDevice, vendor=0x1234, device=0x11, class_code=0xFF0000):
    mmio = Bar(0, size=64)
    one = mmio.reg(0)
    two = mmio.reg(4)
    later = mmio.reg(8)
    scratch = mmio.reg(12)

    @one.write
    def first_mistake(self, value: int) -> None:
        raise ValueError(value)

    @two.write
    def second_mistake(self, value: int) -> None:
        raise ValueError(value)

    @later.write
    def wait(self, value: int) -> None:
        self.after(0, self.third_mistake, value)

    def reset(self) -> None:
        self.after(3600, self.third_mistake, 1)

    def third_mistake(self, value: int) -> None:
        raise ValueError(value)


def test_each_mistake_in_device_code_has_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    with served(Mistaken()) as client:
        for register in (Mistaken.one, Mistaken.two, Mistaken.later) * 2:
            write(client, register.offset, 1, posted=True)
        wait_until(lambda: caplog.text.count("Mistaken.third_mistake failed at") == 2)
    for number in ("first", "second", "third"):
        assert caplog.text.count(f", in {number}_mistake") == 1


def test_the_timers_of_a_guest_that_resets_its_device_for_ever_do_not_pile_up() -> None:
    with served(Mistaken()) as client:
        for _ in range(4 * FEW_TIMERS):
            client.reset()
        assert sum(isinstance(each, Deadline) for each in gc.get_objects()) <= FEW_TIMERS + 1


def test_a_slow_hook_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    device = Probe()
    with served(device) as client:
        write(client, Probe.blocks.offset, 1, posted=True)
        assert device.blocked.wait(PATIENCE)
        threading.Timer(0.02, device.go_on.set).start()
        read(client, Probe.scratch.offset)
    assert "Probe.block took" in caplog.text


class Ram:
    """Memory that a client keeps to itself."""

    def __init__(self) -> None:
        self.content = bytearray(4096)
        self.asked = 0
        self.before_reading: Callable[[], None] = lambda: None

    def read(self, address: int, count: int) -> bytes:
        if address + count > len(self.content):
            raise VfioUserError("no such memory", errno.EFAULT)
        self.asked += 1
        self.before_reading()
        return bytes(self.content[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self.content[address : address + len(data)] = data


def test_memory_that_is_not_shared_is_reached_by_message() -> None:
    memory = Ram()
    memory.content[0x40:0x44] = b"wire"
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        write(client, Probe.fetch.offset, 0x40, size=8)
        assert read(client, Probe.fetched.offset).to_bytes(4, "little") == b"wire"
        write(client, Probe.scratch.offset, 0x6C6C6562)
        write(client, Probe.store.offset, 0x80, size=8)
        assert memory.content[0x80:0x84] == b"bell"


def test_commands_that_come_while_memory_is_asked_for_keep_their_order() -> None:
    memory = Ram()
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        device.seen.clear()
        write(client, Probe.fetch.offset, 0, size=8, posted=True)
        for value in range(20):
            write(client, Probe.scratch.offset, value, posted=True)
        assert read(client, Probe.scratch.offset) == 19
        assert device.seen == [("scratch", value) for value in range(20)]


def test_commands_that_come_while_a_timer_asks_for_memory_are_handled_at_once() -> None:
    memory = Ram()
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        write(client, Probe.fetch_later.offset, 0x40)
        memory.before_reading = lambda: write(client, Probe.scratch.offset, 9, posted=True)
        while not memory.asked:
            client.poll(PATIENCE)
        assert device.wrote.wait(PATIENCE)


def test_dma_outside_the_map_is_the_guests_own_error(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        with pytest.raises(RemoteError):
            write(client, Probe.fetch.offset, 0xDEAD_0000, size=8)
        assert read(client, Probe.fetched.offset) == 0
    assert "0xdead0000" in caplog.text
    assert "Traceback" not in caplog.text


def test_dma_is_refused_while_bus_mastering_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe(), memory=Ram(), enabled=False) as client:
        client.dma_map(0, 4096)
        with pytest.raises(RemoteError):
            write(client, Probe.fetch.offset, 0, size=8)
    assert "bus mastering off" in caplog.text


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
