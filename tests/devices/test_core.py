"""What the SDK does around a hook: time, state, results that come late, and values cut to their sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bellwire import Bar, GuestError, PciDevice, Saved
from bellwire.model.limited import LimitedLog
from bellwire.testing import Guest
from vfio_user import RegionIndex


class Busy(PciDevice, vendor=2, device=1, class_code=1, name="busy"):
    mmio = Bar(0, size=4096, fill=0x5A)
    one = mmio.reg(0x00, reset=7)
    bell = mmio.doorbell(0x10, size=2, value=True)
    row = mmio.ioregion(0x100, 16)
    resets = Saved(0)

    heard: list[object]

    def setup(self) -> None:
        self.heard = []

    @one.write
    def written(self, value: int) -> None:
        self.heard.append(("written", value, self.core.state.busy))

    @bell.ring
    def rung(self, value: int) -> None:
        self.heard.append(("rung", value))

    @row.read
    def read_row(self, offset: int, size: int) -> int:
        return -1

    @row.write
    def write_row(self, offset: int, size: int, value: int) -> None:
        self.heard.append((offset, size, value))

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def guest() -> Iterator[Guest[Busy]]:
    with Guest(Busy) as guest:
        yield guest


@pytest.mark.parametrize(("milliseconds", "slow"), [(9.9, False), (10.1, True)])
def test_a_hook_of_more_than_10_ms_is_slow(
    guest: Guest[Busy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, milliseconds: float,
    slow: bool,
) -> None:  # fmt: skip
    ticks = iter([0.0, milliseconds / 1e3, milliseconds / 1e3])
    monkeypatch.setattr("bellwire.model.core.monotonic", lambda: next(ticks, 0.0))
    monkeypatch.setattr(LimitedLog, "admits", lambda *_: True)
    guest.write(Busy.one, 5)
    assert ("Busy.written took 10 ms" in caplog.text) is slow


def test_the_state_is_busy_while_a_hook_runs_and_after_none(guest: Guest[Busy]) -> None:
    guest.write(Busy.one, 5)
    assert guest.device.heard == [("written", 5, True)]
    assert not guest.device.core.state.busy
    with pytest.raises(ZeroDivisionError):
        guest.device.core.call(lambda: 1 // 0)
    assert not guest.device.core.state.busy


@pytest.mark.parametrize(("size", "read"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF), (8, (1 << 64) - 1)])
def test_what_a_hook_gives_is_cut_to_the_size_of_the_read(guest: Guest[Busy], size: int, read: int) -> None:
    assert guest.read(0, 0x100, size) == read


def test_what_a_ring_carries_is_cut_to_the_size_of_the_doorbell(guest: Guest[Busy]) -> None:
    guest.ring(Busy.bell, 0x12_3456)
    assert guest.device.heard == [("rung", 0x3456)]
    assert guest.device.bell.rung == 1


def test_a_long_access_of_an_ioregion_comes_in_pieces_of_eight(guest: Guest[Busy]) -> None:
    guest.device.core.write(0, 0x101, memoryview(bytes(range(1, 11))))
    assert guest.device.heard == [(1, 8, 0x0807_0605_0403_0201), (9, 2, 0x0A09)]
    assert guest.device.core.read(0, 0x101, 10) == b"\xff" * 10


def test_an_error_says_what_the_guest_did(guest: Guest[Busy], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise GuestError("no")

    core = guest.device.core
    cases: list[tuple[Any, Any, Callable[[], object], str]] = [
        (core._ring_hooks, Busy.bell, lambda: guest.ring(Busy.bell, 0x1_0003), "ring of Busy.bell with 0x3"),
        (
            core._region_writes,
            Busy.row,
            lambda: guest.write(0, 9, offset=0x104, size=2),
            "write of 0x9 (2 bytes) at 0x4 of Busy.row",
        ),
        (core._region_reads, Busy.row, lambda: guest.read(0, 0x104, 2), "read of 2 bytes at 0x4 of Busy.row"),
    ]
    for hooks, key, act, note in cases:
        monkeypatch.setitem(hooks, key, fail)
        with pytest.raises(GuestError) as failed:
            act()
        assert failed.value.__notes__ == [note]


def test_a_reset_and_a_restore_cancel_timers_and_count(guest: Guest[Busy]) -> None:
    device = guest.device
    ran: list[str] = []
    generation = device.core.generation
    for again in (guest.reset, lambda: guest.restore(guest.snapshot())):
        device.after(1, ran.append, "late")
        again()
        guest.advance(2)
    assert (ran, device.core.generation) == ([], generation + 2)
    device.after(1, ran.append, "in time")
    guest.advance(1)
    assert ran == ["in time"]


def test_results_of_work_from_before_a_reset_are_dropped(guest: Guest[Busy]) -> None:
    device = guest.device
    got: list[int] = []
    device.background(lambda number: 2 * number, 21, done=got.append)
    guest.advance()
    assert got == [42]
    device.background(lambda: 43, done=got.append)
    guest.reset()
    guest.advance()
    assert got == [42]
    device.background(lambda: 44)
    guest.advance()


def test_resets_are_counted(guest: Guest[Busy]) -> None:
    before = guest.device.core.tally.resets
    guest.reset()
    guest.device.core.config.write(guest.device.core.config.at[0x10] + 9, memoryview(b"\x80"))
    assert guest.device.core.tally.resets == before + 2
    assert guest.device.resets == 1, "a reset clears what is saved, then counts"


def test_a_region_that_the_device_lacks_reads_as_zeros(guest: Guest[Busy]) -> None:
    core = guest.device.core
    assert (core.region_size(RegionIndex.ROM), core.read(RegionIndex.ROM, 0, 4)) == (0, bytes(4))
    core.write(RegionIndex.ROM, 0, memoryview(b"1234"))
    assert core.reader(RegionIndex.CONFIG, 0, 4).read() == bytes.fromhex("02000100")
    assert not core.reader(RegionIndex.CONFIG, 0, 4).plain
    core.writer(RegionIndex.CONFIG, 0x3C, 1)(memoryview(b"\x0b"))
    assert guest.config_read(0x3C, 1) == 0x0B


def test_places_are_read_and_written_alike_however_they_are_asked_for(guest: Guest[Busy]) -> None:
    core = guest.device.core
    for offset, count in ((0, 4), (0, 2), (2, 4), (0x20, 8), (0x0E, 4), (0x100, 8), (0xFFF, 1), (0, 12)):
        assert core.reader(0, offset, count).read() == core.read(0, offset, count)
    assert core.read(0, 2, 4) == b"\x00\x00\x5a\x5a"
    core.writer(0, 0, 4)(memoryview(b"\x01\x02\x03\x04"))
    core.writer(0, 2, 4)(memoryview(b"\xaa\xbb\xcc\xdd"))
    assert guest.read(Busy.one) == 0xBBAA_0201
    assert guest.device.heard[0] == ("written", 0x0403_0201, True)


def test_only_reads_that_look_at_memory_are_plain(guest: Guest[Busy]) -> None:
    core = guest.device.core
    assert [core.reader(0, *place).plain for place in ((0, 4), (0, 2), (0x10, 2), (0x100, 8), (0x20, 4))] == [
        True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (4096, 1), (4095, 2), (0, 4097)])
def test_a_device_reaches_its_own_bar_and_no_further(guest: Guest[Busy], offset: int, size: int) -> None:
    device = guest.device
    for call in (
        lambda: device.read_bar(0, offset, size),
        lambda: device.write_bar(0, offset, bytes(size)),
    ):
        with pytest.raises(GuestError, match=f"{size} bytes at {offset:#x} of BAR 0, which has 0x1000"):
            call()
    with pytest.raises(GuestError, match="of BAR 1, which has 0x0"):
        device.read_bar(1, 0, 1)
    assert device.read_bar(0, 4095, 1) == b"\x5a"
    assert len(device.read_bar(0, 0, 4096)) == 4096
