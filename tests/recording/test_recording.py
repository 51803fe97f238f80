"""A recording has all that came from the guest: a replay without it gives the same answers, or says where not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire import Bar, GuestError, IntX, Job, MsiX, Option, PciDevice
from bellwire.capture.files import SMALLEST
from bellwire.filters import Filter, Read
from bellwire.recording import Difference, Record, replay
from bellwire.recording.format import (
    Body,
    Recorded,
    entries,
    read_head,
)
from bellwire.testing import Guest
from vfio_user import Client, DeviceState
from vmm.sdk import working

pytestmark = pytest.mark.slow


class Thing(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    """Does everything that a recording has to keep."""

    step = Option(1, help="what a ring adds")
    irq = MsiX(4)
    line = IntX()
    mmio = Bar(0, size=4096)
    total = mmio.reg(0x00)
    status = mmio.reg(0x04)
    fetch = mmio.reg(0x08, size=8)
    store = mmio.reg(0x10, size=8)
    later = mmio.reg(0x18)
    work = mmio.reg(0x1C)
    fails = mmio.reg(0x20)
    stamp = mmio.reg(0x28, size=8)
    chance = mmio.reg(0x30, size=8)
    level = mmio.reg(0x38)
    bell = mmio.doorbell(0x40)
    value_bell = mmio.doorbell(0x44, value=True)
    row = mmio.ioregion(0x100, 64, bell=4)

    def setup(self) -> None:
        self.pool_of_two = self.pool(2, self.worked)
        self.key = int.from_bytes(self.random_bytes(4), "little")

    def reset(self) -> None:
        self.pool_of_two.settle()

    def close(self) -> None:
        self.pool_of_two.close()

    @bell.ring
    def rang(self) -> None:
        self.total += self.step * self.bell.rung
        self.irq[0].trigger()

    @value_bell.ring
    def rang_with(self, value: int) -> None:
        self.total = value

    @row.write
    def rang_in_row(self, offset: int, size: int, value: int) -> None:
        self.total = offset << 16 | value

    @row.read
    def read_row(self, offset: int, size: int) -> int:
        return 0x5A

    @fetch.write
    def fetch_from(self, address: int) -> None:
        self.total = int.from_bytes(self.dma.read(address, 4), "little")

    @store.write
    def store_to(self, address: int) -> None:
        self.dma.write(address, self.total.to_bytes(4, "little") * 40)
        self.irq[1].trigger()

    @later.write
    def do_later(self, value: int) -> None:
        self.after(0.5, self.end, value)

    def end(self, value: int) -> None:
        self.status = value
        self.irq[2].trigger()

    @work.write
    def begin_work(self, value: int) -> None:
        self.pool_of_two.submit(*(Job(lambda: None, tag=each) for each in range(value)))
        self.background(lambda: 7, done=self.background_done)

    def worked(self, jobs: list[Job]) -> None:
        self.status = sum(job.tag for job in jobs)

    def background_done(self, result: int) -> None:
        self.total += result

    @fails.write
    def fail(self, value: int) -> None:
        raise (GuestError if value else LookupError)("no")

    @stamp.read
    def read_stamp(self) -> int:
        return self.clock()

    @chance.read
    def read_chance(self) -> int:
        return int.from_bytes(self.random_bytes(8), "little")

    @level.write
    def set_level(self, value: int) -> None:
        (self.line.high if value else self.line.low)()


def session(guest: Guest[Thing]) -> None:
    """A guest that does all of it."""
    guest.memory[0x1000:0x1004] = b"bell"
    guest.write(Thing.fetch, 0x1000)
    guest.write(Thing.store, 0x2000)
    guest.ring(Thing.bell)
    guest.read(Thing.status)
    guest.read(Thing.total)
    guest.ring(Thing.value_bell, 9)
    guest.write(Thing.row, 5, offset=8, size=4)
    guest.read(Thing.row, offset=4, size=4)
    guest.read(Thing.total)
    guest.write(Thing.later, 3)
    guest.write(Thing.later, 4)
    guest.advance(1)
    guest.read(Thing.status)
    guest.write(Thing.work, 4)
    guest.advance()
    guest.read(Thing.status)
    guest.read(Thing.total)
    guest.read(Thing.stamp)
    guest.read(Thing.chance)
    guest.write(Thing.level, 1)
    guest.write(Thing.level, 0)
    for value in (0, 1):
        with pytest.raises((LookupError, GuestError)):
            guest.write(Thing.fails, value)
    with pytest.raises(GuestError):
        guest.write(Thing.fetch, 1 << 50)
    guest.read(Thing.total)
    guest.reset()


def recorded(
    path: Path, limit: int = 1 << 24, more: Callable[[Guest[Thing]], None] = session, **options: int
) -> Record:
    device = Thing(**options)
    taken = Record(device, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC), limit)
    with Guest(device, filters=[taken]) as guest:
        more(guest)
    return taken


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "a.bwrec"
    recorded(path)
    return path


def kinds(path: Path) -> list[str]:
    return [entry.kind for entry in entries(path)]


def at(path: Path, kind: str, which: int) -> int:
    """The number of the record of that kind, the ``which``-th from 0."""
    return [entry.number for entry in entries(path) if entry.kind == kind][which]


def of_place(path: Path, kind: str, offset: int) -> list[int]:
    """The numbers of the reads or writes at that offset of the BAR."""
    found = []
    for entry in entries(path):
        if entry.kind == kind:
            body = Body(entry)
            body.number()
            if (body.number(), body.number()) == (0, offset):
                found.append(entry.number)
    return found


def test_a_replay_leaves_no_file_open(path: Path, open_fds: set[int]) -> None:
    replay(path, Thing)
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds


def test_a_replay_gives_the_same_answers_twice(path: Path) -> None:
    first = replay(path, Thing)
    assert first.differences == []
    assert first.complete
    assert (first.inputs, first.outputs) == (sum(kinds(path).count(kind) for kind in "RWGXH"), first.outputs)
    assert first.outputs == sum(kinds(path).count(kind) for kind in "rdDI")
    assert replay(path, Thing) == first


def test_a_state_that_the_client_gives_is_recorded(tmp_path: Path) -> None:
    with Guest(Thing()) as before:
        before.write(Thing.level, 1)
        before.ring(Thing.bell)
        snapshot = before.snapshot()

    def resumed(guest: Guest[Thing]) -> None:
        guest.ring(Thing.value_bell, 9)
        guest.restore(snapshot)
        guest.ring(Thing.bell)
        assert guest.read(Thing.total) == 3  # rung is in the state
        guest.restore(guest.snapshot())

    recorded(tmp_path / "a", more=resumed)
    assert kinds(tmp_path / "a").count("S") == 2
    outcome = replay(tmp_path / "a", Thing)
    assert (outcome.differences, outcome.complete) == ([], True)


def test_a_device_that_has_moved_is_replayed_from_its_state_on(tmp_path: Path) -> None:
    total, bell = (0, Thing.total.offset), (0, Thing.value_bell.offset)
    with working(Thing) as sock, Client(sock) as client:
        client.write(*total, bytes([5, 0, 0, 0]))
        client.migration.set_state(DeviceState.STOP_COPY)
        state = b"".join(iter(lambda: client.migration.read(1 << 16), b""))
    device = Thing()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 24)
    with working(lambda: device, filters=[taken]) as sock, Client(sock) as client:
        client.migration.set_state(DeviceState.RESUMING)
        client.migration.write(state)
        client.migration.set_state(DeviceState.RUNNING)
        assert client.read(*total, 4) == bytes([5, 0, 0, 0])
        client.write(*bell, bytes([9, 0, 0, 0]))
        assert client.read(*total, 4) == bytes([9, 0, 0, 0])
    outcome = replay(tmp_path / "a", Thing)
    assert (outcome.differences, outcome.complete) == ([], True)


def test_every_kind_of_record_is_in_this_recording(path: Path) -> None:
    assert set(kinds(path)) == set("BMRWGXHrefdDIiTEZ")


def test_the_head_names_the_device_and_its_options(tmp_path: Path) -> None:
    recorded(tmp_path / "a", step=3)
    with (tmp_path / "a").open("rb") as file:
        assert read_head(file) == Recorded("thing", {"step": "3"}, "")
    assert replay(tmp_path / "a", Thing, step=3).differences == []
    assert replay(tmp_path / "a", Thing, step=4).differences != []


def test_a_device_that_answers_a_read_differently_is_named_with_register_event_and_values(path: Path) -> None:
    class Broken(Thing):
        @Thing.total.read
        def read_total(self) -> int:
            return 8

    reads = of_place(path, "R", 0)
    assert replay(path, Broken).differences == [
        Difference(number, "read of total (BAR0+0x0)", expected, "0x00000008")
        for number, expected in zip(reads, ["0x6c6c6563", "0x00080005", "0x0008000c", "0x0008000c"], strict=True)
    ]


def test_an_interrupt_that_is_lost_and_one_that_is_new_are_named(path: Path) -> None:
    class Lost(Thing):
        @Thing.bell.ring
        def rang_silently(self) -> None:
            self.total += 1

    class New(Thing):
        @Thing.bell.ring
        def rang_loudly(self) -> None:
            self.rang()
            self.irq[3].trigger()

    which = [entry.number for entry in entries(path) if entry.kind == "I" and entry.body[:2] == bytes((2, 0))]
    assert replay(path, Lost).differences == [Difference(which[0], "interrupt MSIX 0", "it happens", "it does not")]
    assert [each[1:] for each in replay(path, New).differences] == [("interrupt MSIX 3", "nothing", "it happens")]


def test_a_doorbell_that_is_gone_is_named(path: Path) -> None:
    class Without(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
        irq = MsiX(4)
        mmio = Bar(0, size=4096)

    found = [each[1:] for each in replay(path, Without).differences]
    assert ("ring of a doorbell at BAR0+0x40", "it rings", "the device has none there") in found


def test_other_bytes_and_another_place_of_a_dma_are_named(path: Path) -> None:
    class Other(Thing):
        @Thing.store.write
        def store_other(self, address: int) -> None:
            self.dma.write(address, b"x" * 160)
            self.irq[1].trigger()

    class Elsewhere(Thing):
        @Thing.fetch.write
        def fetch_elsewhere(self, address: int) -> None:
            self.total = int.from_bytes(self.dma.read(address + 4, 4), "little")

    (other,) = replay(path, Other).differences
    assert (other.event, other.what) == (at(path, "D", 0), "DMA write of 160 bytes at 0x2000")
    assert other.expected.startswith("62 65 6c 6c 62")
    assert other.got.startswith("78 78 78")
    found = replay(path, Elsewhere).differences
    assert found[0] == Difference(of_place(path, "W", 8)[0], "DMA read of 4 bytes at 0x1004", "nothing", "it happens")
    assert found[1].what.startswith("write of 0x0000000000001000 to fetch")
    assert (found[1].expected, found[1].got) == ("no error", "GuestError")


def test_an_error_that_is_gone_and_a_timer_that_is_not_set_are_named(path: Path) -> None:
    class Never(Thing):
        @Thing.fails.write
        def succeed(self, value: int) -> None:
            pass

        @Thing.later.write
        def never(self, value: int) -> None:
            pass

    found = [each[1:] for each in replay(path, Never).differences]
    assert ("callback end", "it was asked for", "nobody has asked for it") in found
    assert ("write of 0x00000000 to fails (BAR0+0x20)", "LookupError", "no error") in found


def test_what_a_killed_process_has_left_is_replayed_as_far_as_it_goes(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    begin = whole.index(b"B\x02\x01\x01")
    for end in range(begin + 4, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:end])
        outcome = replay(tmp_path / "cut", Thing)
        assert not outcome.complete
        assert outcome.differences == []


def test_what_the_loop_tells_a_device_is_told_again(tmp_path: Path) -> None:
    class Told(Thing):
        def wires_changed(self) -> None:
            self.status += 1

    device = Told()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 20)
    with Guest(device, filters=[taken]) as guest:
        before = guest.read(Thing.status)
        device.core.call(device.wires_changed)  # as when a client has set interrupts
        assert guest.read(Thing.status) == before + 1
    assert replay(tmp_path / "a", Told).differences == []


def test_a_recording_ends_at_its_limit_and_the_device_goes_on(tmp_path: Path) -> None:
    def many(guest: Guest[Thing]) -> None:
        for value in range(20000):
            guest.write(Thing.status, value)
        assert guest.read(Thing.status) == 19999

    taken = recorded(tmp_path / "a", SMALLEST, many)
    assert "which is the limit" in taken.files.ended
    assert (tmp_path / "a").stat().st_size <= SMALLEST
    outcome = replay(tmp_path / "a", Thing)
    assert (outcome.differences, outcome.inputs > 2000) == ([], True)


def test_what_filters_in_front_have_changed_is_recorded_as_the_device_got_it(tmp_path: Path) -> None:
    class Doubled(Filter):
        def before_write(self, write: object) -> None:
            write.value *= 2  # type: ignore[attr-defined] # a Write

        def after_read(self, read: Read) -> None:
            read.value = 0

    device = Thing()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 20)
    with Guest(device, filters=[Doubled(), taken]) as guest:
        guest.write(Thing.total, 21)
        assert guest.read(Thing.total) == 0
    assert replay(tmp_path / "a", Thing).differences == []
    (got,) = (Body(entry) for entry in entries(tmp_path / "a") if entry.kind == "r" and len(entry.body) == 5)
    assert got.bytes() == (42).to_bytes(4, "little")


def test_a_device_that_leaves_no_filter_behind_pays_nothing(tmp_path: Path) -> None:
    device = Thing()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 20)
    with Guest(device) as guest:
        submit = device.pool_of_two.submit
        guest.filters.add(taken)
        guest.filters.remove(taken)
        assert device.pool_of_two.submit == submit
        assert "taken" not in vars(device.core.signals)
        assert type(device.outside).__name__ == "Outside"
