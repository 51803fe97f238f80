"""Another process has died, or makes room: its state goes on here, with the guest that was there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bellwire import Aer, Bar, MsiX, PciDevice, Saved, StateError
from bellwire.model import capabilities as pci
from bellwire.model.source import StateFiles
from bellwire.testing import Guest
from devices.versions import bar, version


class Steps(PciDevice, vendor=0x1234, device=0x31, class_code=0xFF0000, name="steps"):
    """Counts twice in a hook; a test lets the hook end in between."""

    mmio = Bar(0, size=256)
    word = mmio.reg(0)
    go = mmio.doorbell(8)
    screen = Bar(2, size=1 << 14)
    frame = screen.area(4096, 8192)
    irq = MsiX(2)
    first = Saved(0)
    second = Saved(0)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: list[str] = []

    @go.ring
    def rang(self) -> None:
        self.first += 1
        self.between()
        self.second += 1

    def between(self) -> None: ...

    def restored(self) -> None:
        self.heard.append("restored")


class Mending(Steps, name="mending"):
    def recovered(self, torn: bool) -> None:
        self.heard.append(f"recovered {torn}")
        self.second = self.first


def torn_by(guest: Guest[Any]) -> None:
    """Leave ``guest``'s device as a process that is killed in the middle of its hook leaves it."""
    guest.write(Steps.word, 0x77)
    guest.ring(Steps.go)
    guest.device.between = guest.device.core.state.enter  # the hook's end does not take that back
    guest.ring(Steps.go)
    guest.device.second = 1


@contextmanager
def successor(guest: Guest[Any], kind: type[PciDevice] | None = None) -> Iterator[Guest[Any]]:
    with Guest(kind or type(guest.device)) as after:
        after.device.core.reset()
        yield after


def take_over(after: Guest[Any], before: Guest[Any], *, client: bool = True, died: bool = True) -> None:
    after.device.core.take_over(before.device.core.state.files, client=client, died=died)


def test_a_successor_has_the_state_and_the_device_is_told() -> None:
    with Guest(Steps) as guest, successor(guest) as after:
        guest.write(Steps.word, 0x77)
        guest.ring(Steps.go)
        take_over(after, guest)
        device = after.device
        assert (device.word, device.first, device.second, device.go.rung) == (0x77, 1, 1, 1)
        assert device.bus_master
        assert device.irq.enabled
        assert device.heard == ["restored"]


def test_what_the_guest_maps_stays_where_it_is() -> None:
    """Before and after, the guest's map is of the file that the first process has made."""
    with Guest(Steps) as guest, successor(guest) as after:
        view = after.device.frame
        guest.device.frame[5000] = 1
        take_over(after, guest)
        guest.device.frame[5001] = 2
        assert bytes(view[5000:5002]) == bytes(after.device.frame[5000:5002]) == b"\1\2"
        after.device.frame[5002] = 3
        assert guest.device.frame[5002] == 3


def test_the_state_itself_is_a_copy_so_that_a_failed_successor_spoils_nothing() -> None:
    with Guest(Steps) as guest, successor(guest) as after:
        guest.write(Steps.word, 1)
        take_over(after, guest)
        after.write(Steps.word, 2)
        assert guest.read(Steps.word) == 1


def test_a_device_that_has_a_hook_for_it_mends_a_torn_state() -> None:
    with Guest(Mending) as guest, successor(guest) as after:
        torn_by(guest)
        take_over(after, guest)
        assert after.device.heard == ["recovered True"]
        assert (after.device.first, after.device.second, after.device.word) == (2, 2, 0x77)
        assert not after.device.core.state.busy


def test_that_hook_hears_that_a_state_is_whole() -> None:
    with Guest(Mending) as guest, successor(guest) as after:
        take_over(after, guest)
        assert after.device.heard == ["recovered False"]


def test_a_device_without_that_hook_is_reset_and_the_guest_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with Guest(Steps) as guest, successor(guest) as after:
        torn_by(guest)
        guest.device.frame[1] = 1
        take_over(after, guest)
        assert (after.device.word, after.device.first, after.device.frame[1]) == (0, 0, 0)
        assert guest.device.frame[1] == 0, "the guest's map is not of the device's area any more"
        assert after.config_read(pci.STATUS, 2) & pci.SIGNALED_SYSTEM_ERROR
        assert after.device.core.config.errors_detected == pci.FATAL_ERROR_DETECTED
        assert after.device.bus_master, "the guest's set-up is lost"
        assert after.device.irq.enabled
        assert "reset, since its state is lost: Steps.recovered does not say how to go on" in caplog.text


def test_the_guest_clears_what_it_was_told() -> None:
    with Guest(Steps) as guest:
        guest.device.core.fail("a test wants it")
        guest.config_write(pci.STATUS, pci.SIGNALED_SYSTEM_ERROR, 2)
        assert not guest.config_read(pci.STATUS, 2) & pci.SIGNALED_SYSTEM_ERROR


def test_a_device_that_reports_errors_reports_this_one() -> None:
    kind = version(aer=Aer())
    with Guest(kind) as guest:
        guest.device.core.fail("a test wants it")
        assert guest.read(kind.aer.uncorrectable_status) == 1 << 22


def test_an_own_hook_tells_the_guest_in_the_devices_words() -> None:
    class Talking(Steps, name="talking"):
        def failed(self) -> None:
            self.word = 0xDEAD
            self.irq[1].trigger()

    with Guest(Talking) as guest, successor(guest) as after:
        torn_by(guest)
        take_over(after, guest)
        assert after.read(Steps.word) == 0xDEAD
        assert sum(after.interrupts.values()) == 1


def test_a_state_that_the_device_refuses_is_lost() -> None:
    class Strict(Steps, name="strict"):
        def check_state(self) -> None:
            if self.first > 7:
                raise StateError("more than seven")

    with Guest(Strict) as guest, successor(guest) as after:
        guest.device.first = 8
        take_over(after, guest)
        assert after.device.first == 0
        with pytest.raises(StateError, match="more than seven"):
            take_over(after, guest, died=False)


@pytest.mark.parametrize("hook", ["recovered", "check_state"])
def test_device_code_that_fails_at_what_a_crash_has_left_is_a_lost_state(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: PciDevice, *_: bool) -> None:
        raise KeyError("lost")

    class Wrong(Steps, name="wrong"):
        def failed(self) -> None:
            self.word = 0xDEAD

    setattr(Wrong, hook, fails)
    with Guest(Wrong) as guest, successor(guest) as after:
        guest.device.first = 8
        take_over(after, guest)
        assert (after.device.first, after.device.word) == (0, 0xDEAD)
        assert "reset, since its state is lost: KeyError" in caplog.text
        assert f"in {fails.__name__}" in caplog.text  # the traceback
        with pytest.raises(KeyError, match="lost") if hook == "check_state" else contextlib.nullcontext():
            take_over(after, guest, died=False)


def test_a_process_that_makes_room_leaves_no_torn_state() -> None:
    with Guest(Mending) as guest, successor(guest) as after:
        torn_by(guest)
        untouched = after.snapshot()
        with pytest.raises(StateError, match="the state is torn"):
            take_over(after, guest, died=False)
        assert after.snapshot() == untouched


def test_new_code_takes_the_state_over_by_name() -> None:
    old, new = version(**bar(word=(0, 4), other=(4, 4))), version(**bar(other=(8, 8)), fresh=Saved(3))
    with Guest(old) as guest, successor(guest, new) as after:
        guest.device.word, guest.device.other = 1, 2
        take_over(after, guest, died=False)
        assert (after.device.other, after.device.fresh) == (2, 3)


def test_new_code_that_looks_different_is_refused_while_a_client_is_there() -> None:
    old, new = version(**bar(word=(0, 4))), version(**bar(128, word=(0, 4)))
    with Guest(old) as guest, successor(guest, new) as after:
        guest.device.word = 9
        with pytest.raises(StateError, match=r"BAR 0 was 0x40 .* and is 0x80"):
            take_over(after, guest)
        take_over(after, guest, client=False, died=False)
        assert after.device.word == 9


def test_areas_that_have_changed_are_copied() -> None:
    def framed(offset: int) -> Any:
        screen = Bar(1, size=1 << 16)
        return version(screen=screen, frame=screen.area(offset, 4096))

    with Guest(framed(0)) as guest, successor(guest, framed(8192)) as after:
        guest.device.frame[7] = 1
        take_over(after, guest, client=False, died=False)
        guest.device.frame[8] = 1
        assert bytes(after.device.frame[7:9]) == b"\1\0"


def test_files_that_cannot_be_a_state_are_refused(open_fds: set[int]) -> None:
    with Guest(Steps) as guest, successor(guest) as after:
        core = after.device.core
        state, areas = guest.device.core.state.files
        before = after.snapshot()
        short = os.memfd_create("short")
        try:
            for files, why in (
                (StateFiles(short, areas), "0 bytes are no state"),
                (StateFiles(areas[2], areas), "not the state of a Bellwire device"),
                (StateFiles(state, {}), "the file of BAR 2's areas is missing"),
                (StateFiles(state, {2: short}), "a file of 0 bytes where the state has 12288"),
            ):
                with pytest.raises(StateError, match=why):
                    core.take_over(files, client=True, died=True)
            os.ftruncate(short, 20000)
            os.pwrite(short, os.pread(state, 4000, 0), 0)
            with pytest.raises(StateError, match="another checksum"):
                core.take_over(StateFiles(short, areas), client=True, died=True)
        finally:
            os.close(short)
        assert after.snapshot() == before


def test_a_take_over_leaves_no_descriptor_behind(open_fds: set[int]) -> None:
    with Guest(Steps) as guest, successor(guest) as after:
        take_over(after, guest)
        take_over(after, guest)
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds) + 1}
