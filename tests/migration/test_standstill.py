"""What stands still in a device that migrates, and what goes on when it runs again."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire import Bar, Job, MsiX, PciDevice, Saved, StateError
from bellwire.filters.builtin.delay import Delay
from bellwire.testing import serve
from migration.moving import PATIENCE, Machine
from vfio_user import Client, DeviceState, IoEventFd, IrqIndex, MigrationFlags, RemoteError

STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY = (
    DeviceState.STOP,
    DeviceState.RUNNING,
    DeviceState.STOP_COPY,
    DeviceState.RESUMING,
    DeviceState.PRE_COPY,
)


class Busy(PciDevice, vendor=0x1234, device=0xB059, class_code=0x088000):
    """Has everything that runs on its own."""

    irq = MsiX(1)
    mmio = Bar(0, size=8192)
    ticks = mmio.reg(0)
    start = mmio.reg(4)
    work = mmio.reg(8)
    worked = mmio.reg(12)
    pooled = mmio.reg(16)
    heard = mmio.reg(20)
    rings = mmio.reg(24)
    limit = mmio.reg(28)
    bell = mmio.doorbell(0x100)
    area = mmio.area(0x1000, 4096)
    restorations = Saved(0)
    refuses = Saved(False)

    def setup(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK)
        self.watch(self.read_end, self.hear)
        self.jobs = self.pool(2, self.done)
        self.may_end = threading.Event()
        self.halts = 0

    def close(self) -> None:
        self.may_end.set()
        self.jobs.close()
        self.unwatch(self.read_end)
        os.close(self.read_end)
        os.close(self.write_end)

    def hear(self) -> None:
        self.heard += len(os.read(self.read_end, 100))

    @start.write
    def begin(self, _: int) -> None:
        self.after(0.001, self.tick)

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks != self.limit:
            self.after(0.001, self.tick)

    @work.write
    def submit(self, patient: int) -> None:
        self.background((self.may_end.wait if patient else time.time), done=self.worked_off)
        self.jobs.submit(Job(time.sleep, 0.002))

    def worked_off(self, _: object) -> None:
        self.worked += 1

    def done(self, jobs: list[Job]) -> None:
        self.pooled += len(jobs)

    @bell.ring
    def rung(self) -> None:
        self.rings += 1
        self.irq[0].trigger()

    def check_state(self) -> None:
        if self.refuses:
            raise StateError("the state does not please")

    def restored(self) -> None:
        self.restorations += 1

    def halted(self) -> None:
        self.halts += 1
        if self.limit == 99:
            raise StateError("not now")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(Busy) as machine:
        yield machine


def device(machine: Machine) -> Busy:
    assert isinstance(machine.serving.device, Busy)
    return machine.serving.device


def register(machine: Machine, offset: int) -> int:
    return machine.read(0, offset, 4)


def look(machine: Machine) -> list[int]:
    """All registers, past the client: it cannot read them while the device stands still."""
    return machine.serving.call(lambda: list(struct.unpack("<8I", device(machine).storage(Busy.mmio)[:32])))


def put(machine: Machine, offset: int, value: int) -> None:
    machine.write(0, value, offset=offset, size=4)


def turns(machine: Machine) -> None:
    """Let the worker's loop turn for longer than its timers take."""
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        machine.config_read(0, 4)


def test_nothing_runs_in_stop_and_all_of_it_goes_on(machine: Machine) -> None:
    client, bell = machine.client, next(sub for sub in machine.client.io_fds(0) if isinstance(sub, IoEventFd))
    put(machine, 4, 1)
    machine.wait(lambda: register(machine, 0) > 3)
    client.migration.set_state(STOP)
    os.write(device(machine).write_end, b"three")
    os.eventfd_write(bell.fd, 1)
    before = look(machine)
    turns(machine)
    assert look(machine) == before
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.vectors[0])
    client.migration.set_state(RUNNING)
    machine.wait(lambda: register(machine, 0) > before[0] and register(machine, 20) == 5 and register(machine, 24) == 1)
    assert os.eventfd_read(machine.vectors[0]) == 1
    assert device(machine).restorations == 0
    os.close(bell.fd)


def test_what_threads_work_on_is_finished_before(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwire.serve.migration.SETTLING", PATIENCE)  # of a busy machine
    for _ in range(8):
        put(machine, 8, 0)
    machine.client.migration.set_state(STOP)
    assert look(machine)[3:5] == [8, 8]


def test_what_a_filter_delays_goes_on_before(machine: Machine) -> None:
    machine.serving.call(machine.serving.filters.add, Delay(write=3600.0))
    machine.client.write(0, 0, struct.pack("<I", 7), posted=True)
    machine.client.migration.set_state(STOP)
    assert look(machine)[0] == 7


def test_what_takes_longer_waits_and_its_result_comes_later(machine: Machine) -> None:
    put(machine, 8, 1)
    begun = time.monotonic()
    machine.client.migration.set_state(STOP)
    assert time.monotonic() - begun < 2
    device(machine).may_end.set()
    machine.config_read(0, 4)
    assert look(machine)[3] == 0
    machine.client.migration.set_state(RUNNING)
    machine.wait(lambda: register(machine, 12) == 1)


def test_a_result_from_before_the_move_is_dropped(machine: Machine) -> None:
    put(machine, 8, 1)
    state = machine.save()
    machine.client.migration.set_state(RESUMING)
    machine.client.migration.write(state)
    device(machine).may_end.set()
    machine.client.migration.set_state(RUNNING)
    assert (register(machine, 12), device(machine).restorations) == (0, 1)


def test_a_timer_keeps_the_time_that_it_has_left(machine: Machine) -> None:
    put(machine, 28, 1)
    put(machine, 4, 1)
    machine.client.migration.set_state(STOP)
    ticks = look(machine)[0]
    turns(machine)
    assert look(machine)[0] == ticks
    machine.client.migration.set_state(RUNNING)
    machine.wait(lambda: register(machine, 0) == 1)


@pytest.mark.parametrize("state", [STOP, STOP_COPY, RESUMING])
def test_registers_cannot_be_reached_and_config_space_can_be_read(machine: Machine, state: DeviceState) -> None:
    machine.client.migration.set_state(state)
    for access in (
        lambda: register(machine, 0),
        lambda: put(machine, 0, 1),
        lambda: machine.config_write(4, 0, 2),
    ):
        with pytest.raises(RemoteError, match="busy"):
            access()
    assert machine.config_read(0, 4) == 0xB0591234
    assert machine.client.region_info(0).info.size == 8192
    machine.client.reset()
    assert register(machine, 0) == 0


def test_a_reset_ends_it_and_the_state_that_was_loaded(machine: Machine) -> None:
    put(machine, 0, 7)
    state = machine.save()
    machine.client.migration.set_state(RESUMING)
    machine.client.migration.write(state)
    machine.client.migration.set_state(STOP)
    machine.client.reset()
    assert (register(machine, 0), device(machine).restorations) == (0, 0)


def test_a_reset_by_hand_ends_it_too(machine: Machine) -> None:
    machine.client.migration.set_state(STOP_COPY)
    machine.serving.reset()
    assert machine.client.migration.state is RUNNING
    assert register(machine, 0) == 0


def test_a_device_that_cannot_stand_still_says_so_and_goes_on(machine: Machine) -> None:
    put(machine, 28, 99)
    put(machine, 4, 1)
    with pytest.raises(RemoteError):
        machine.client.migration.set_state(STOP)
    assert (machine.client.migration.state, device(machine).halts) == (RUNNING, 1)
    before = register(machine, 0)
    machine.wait(lambda: register(machine, 0) > before)


def test_a_state_that_the_device_refuses_leaves_it_as_it_was(machine: Machine) -> None:
    put(machine, 0, 7)
    machine.serving.call(lambda: setattr(device(machine), "refuses", True))
    state = machine.save()
    machine.client.migration.set_state(RUNNING)
    machine.serving.call(lambda: setattr(device(machine), "refuses", False))
    put(machine, 0, 8)
    machine.client.migration.set_state(RESUMING)
    machine.client.migration.write(state)
    with pytest.raises(RemoteError):
        machine.client.migration.set_state(RUNNING)
    assert machine.client.migration.state is RESUMING
    assert (look(machine)[0], device(machine).refuses, device(machine).restorations) == (8, False, 0)


def test_a_client_that_leaves_lets_the_device_run(tmp_path: Path) -> None:
    for state in (STOP, STOP_COPY, RESUMING):
        with serve(Busy, path=tmp_path / "socket") as serving:
            with contextlib.closing(Client.connect(serving.path)) as client:
                client.write(0, 0, struct.pack("<I", 7))
                client.migration.set_state(state)
            with contextlib.closing(Client.connect(serving.path)) as client:
                assert client.migration.state is RUNNING
                assert client.read(0, 0, 4) == struct.pack("<I", 7)


def test_a_state_that_was_loaded_and_has_not_run_can_move_on(machine: Machine) -> None:
    put(machine, 0, 7)
    state = machine.save()
    machine.client.migration.set_state(RESUMING)
    machine.client.migration.write(state)
    assert machine.save() == state
    machine.client.migration.set_state(RUNNING)
    assert (register(machine, 0), device(machine).restorations) == (7, 1)


def test_pre_copy_sends_what_has_changed_since() -> None:
    class Large(PciDevice, vendor=0x1234, device=0x1A26, class_code=0x088000):
        mmio = Bar(0, size=1 << 20)
        value = mmio.reg(0)
        area = mmio.area(0x10000, 0x80000)

    def page(machine: Machine, number: int) -> memoryview:
        area: memoryview = machine.serving.device.area  # type: ignore[attr-defined]
        return area[4096 * number : 4096 * number + 4096]

    with Machine(Large) as machine:
        assert MigrationFlags.PRE_COPY in machine.client.migration.flags()
        machine.client.write(0, 0, struct.pack("<I", 7))
        for number in range(64):
            page(machine, number)[:] = os.urandom(4096)
        machine.client.migration.set_state(PRE_COPY)
        first = b"".join(iter(lambda: machine.client.migration.read(1 << 16), b""))
        assert len(first) > 64 * 4096
        page(machine, 3)[:] = b"3" * 4096
        page(machine, 4)[:] = bytes(4096)
        page(machine, 100)[:] = b"h" * 4096
        expected = bytes(machine.serving.device.area)  # type: ignore[attr-defined]
        rest = machine.save()
        assert len(rest) < 16384
        machine.load(first + rest, machine.memory)
        assert bytes(machine.serving.device.area) == expected  # type: ignore[attr-defined]
        assert machine.read(0, 0, 4) == 7


def test_a_device_with_a_small_state_has_no_pre_copy(machine: Machine) -> None:
    assert machine.client.migration.flags() == MigrationFlags.STOP_COPY
    assert machine.client.irq_info(IrqIndex.MSIX).count == 1
