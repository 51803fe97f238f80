"""State, snapshots, saved fields, DMA, timers, background work, options."""

from __future__ import annotations

import mmap
import os
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest

from bellwire import (
    Bar,
    GuestError,
    MsiX,
    Option,
    OptionError,
    PciDevice,
    Saved,
    SavedBytes,
    StateError,
)
from bellwire.testing import Guest


class Phase(IntFlag):
    FIRST = 1
    SECOND = 2


class Pace(IntEnum):
    SLOW = 0
    FAST = 1


class Keeper(PciDevice, vendor=0x1234, device=3, class_code=0xFF0000, name="keeper"):
    mmio = Bar(0, size=256)
    one = mmio.reg(0)
    go = mmio.doorbell(4)
    number = Saved(7)
    yes = Saved(False)
    ratio = Saved(0.5)
    store = SavedBytes(16)
    size = Option(1 << 20, help="bytes")
    label = Option("none")
    quick = Option(False)
    image = Option(Path("disk.img"))
    pace = Option(Pace.SLOW)

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.log_of: list[str] = []

    @go.ring
    def copy(self) -> None:
        self.dma.write(self.one + 64, self.dma.read(self.one, 64))

    def restored(self) -> None:
        self.log_of.append("restored")


class Wider(PciDevice, vendor=0x1234, device=4, class_code=0xFF0000, name="wider"):
    mmio = Bar(0, size=256)
    two = mmio.reg(0)
    go = mmio.doorbell(4)
    number = Saved(7)
    yes = Saved(False)
    ratio = Saved(0.5)
    store = SavedBytes(16)

    @go.ring
    def gone(self) -> None: ...


def keeper(guest: Guest[Keeper]) -> Keeper:
    assert isinstance(guest.device, Keeper)
    return guest.device


def test_saved_fields_keep_their_type() -> None:
    with Guest(Keeper) as guest:
        device = keeper(guest)
        device.number, device.yes, device.ratio = -(2**63), True, 2.25
        device.number += 1
        assert (device.number, device.yes, device.ratio) == (-(2**63) + 1, True, 2.25)
        device.number = 2**64 - 1
        assert device.number == 2**64 - 1


def test_a_saved_field_that_cannot_hold_a_value_says_so() -> None:
    with Guest(Keeper) as guest, pytest.raises(StateError, match=r"Keeper\.number cannot hold"):
        keeper(guest).number = 2**127


@pytest.mark.parametrize("value", [1.5, "1", None])
def test_a_saved_number_is_never_a_silent_guess(value: Any) -> None:
    with Guest(Keeper) as guest, pytest.raises(StateError, match=r"Keeper\.number cannot hold"):
        keeper(guest).number = value


def test_a_saved_flag_or_enumeration_keeps_its_type() -> None:
    class Phases(PciDevice, vendor=2, device=1, class_code=1, name="phases"):
        flags = Saved(Phase.FIRST)

    with Guest(Phases) as guest:
        device = guest.device
        assert isinstance(device, Phases)
        device.flags |= Phase.SECOND
        assert device.flags is Phase.FIRST | Phase.SECOND


@pytest.mark.parametrize("name", ["store", "go", "irq", "size", "frame"])
def test_an_assignment_does_not_hide_a_declaration(name: str) -> None:
    class Hider(Keeper, name="hider"):
        irq = MsiX(1)
        screen = Bar(1, size=4096)
        frame = screen.area(0, 4096)

    with Guest(Hider) as guest, pytest.raises(AttributeError, match=rf"{name} is a \w+: only what is in it"):
        setattr(guest.device, name, b"new")


def test_reset_brings_saved_fields_back() -> None:
    with Guest(Keeper) as guest:
        device = keeper(guest)
        device.number, device.store[3] = 1, 9
        device.core.reset()
        assert device.number == 7
        assert bytes(device.store) == bytes(16)


def test_restore_puts_everything_back_and_tells_the_device() -> None:
    with Guest(Keeper) as guest:
        device = keeper(guest)
        device.number, device.store[0] = 42, 5
        guest.write(Keeper.one, 0x100)
        guest.ring(Keeper.go)
        before = device.core.snapshot()
        device.core.reset()
        device.core.restore(before)
        assert (device.number, device.store[0], device.one, device.go.rung) == (42, 5, 0x100, 1)
        assert device.core.config.bus_master
        assert device.log_of == ["restored"]


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"XXXX" + b[4:]])
def test_a_snapshot_that_was_spoilt_is_refused(spoil: object) -> None:
    with Guest(Keeper) as guest, pytest.raises(StateError):
        guest.device.core.restore(spoil(guest.device.core.snapshot()))  # type: ignore[operator]


def test_another_devices_snapshot_is_refused() -> None:
    with (
        Guest(Keeper) as one,
        Guest(Wider) as other,
        pytest.raises(StateError, match="of a device named wider, not of keeper"),
    ):
        one.device.core.restore(other.device.core.snapshot())


def test_a_hook_that_ends_within_another_does_not_end_that() -> None:
    class Nested(PciDevice, vendor=2, device=1, class_code=1, name="nested"):
        mmio = Bar(0, size=16)
        outer = mmio.reg(0)
        inner = mmio.reg(4, access="ro")
        busy = False

        @outer.write
        def look(self, _: int) -> None:
            self.core.read(0, 4, 4)
            self.busy = self.core.state.busy

        @inner.read
        def idle(self) -> int:
            return 0

    with Guest(Nested) as guest:
        guest.write(Nested.outer, 1)
        assert guest.device.busy
        assert not guest.device.core.state.busy


def test_state_is_torn_while_it_is_reset_or_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    with Guest(Keeper) as guest:
        core = guest.device.core
        seen: list[bool] = []
        monkeypatch.setattr(SavedBytes, "clear", lambda *_: seen.append(core.state.busy))
        monkeypatch.setattr(Keeper, "restored", lambda _: seen.append(core.state.busy))
        core.reset()
        core.restore(core.snapshot())
        assert seen == [True, True]
        assert not core.state.busy


def test_a_snapshot_taken_inside_a_hook_is_torn() -> None:
    class Selfie(PciDevice, vendor=2, device=1, class_code=1, name="selfie"):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)
        picture = b""

        @one.write
        def take(self, value: int) -> None:
            self.picture = self.core.snapshot()

    with Guest(Selfie) as guest:
        guest.write(Selfie.one, 1)
        assert not guest.device.core.state.busy
        with pytest.raises(StateError, match="torn"):
            guest.device.core.restore(guest.device.picture)


def test_areas_cannot_be_shrunk_by_a_client() -> None:
    class Framed(PciDevice, vendor=2, device=1, class_code=1, name="framed"):
        mmio = Bar(0, size=4096)
        frame = mmio.area(0, 4096)

    with Guest(Framed) as guest:
        fd = guest.device.core.state.area_fds[0]
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with mmap.mmap(fd, 4096) as client:
            client[0] = 3
        assert guest.device.frame[0] == 3


def test_a_reset_clears_an_area_and_gives_its_memory_back() -> None:
    class Screen(PciDevice, vendor=2, device=1, class_code=1, name="screen"):
        mmio = Bar(0, size=1 << 24)
        other = mmio.reg(0)
        frame = mmio.area(1 << 23, 1 << 23)

    with Guest(Screen) as guest:
        fd = guest.device.core.state.area_fds[0]
        guest.write(Screen.frame, 7, offset=4096, size=1)
        assert os.fstat(fd).st_blocks == 8
        guest.device.core.reset()
        assert guest.read(Screen.frame, offset=4096, size=1) == 0
        assert os.fstat(fd).st_blocks <= 8  # the page that was read


def test_dma_copies_guest_memory() -> None:
    with Guest(Keeper) as guest:
        assert guest.memory is not None
        guest.memory[0:64] = bytes(range(64))
        guest.ring(Keeper.go)
        assert bytes(guest.memory[64:128]) == bytes(range(64))


def test_dma_outside_the_guests_memory_is_its_error() -> None:
    with Guest(Keeper, memory=4096) as guest:
        guest.write(Keeper.one, 4090)
        with pytest.raises(GuestError, match="DMA read of 64 bytes at 0xffa"):
            guest.ring(Keeper.go)


@pytest.mark.parametrize("write", [False, True])
def test_a_shared_map_is_the_whole_stretch_around_an_address(write: bool) -> None:
    with Guest(Keeper, memory=1 << 16) as guest:
        found = guest.device.dma.shared_map(0x1234, write=write)
        assert found is not None
        assert (found.start, found.end, len(found.view)) == (0, 1 << 16, 1 << 16)
        guest.memory[0x1234] = 77
        assert found.view[0x1234] == 77
        assert found.view.readonly is not write
        assert guest.device.dma.shared_map(1 << 16) is None


def test_dma_map_gives_guest_memory_itself() -> None:
    with Guest(Keeper) as guest:
        assert guest.memory is not None
        (view,) = guest.device.dma.map(0x1000, 16, write=True)
        view[0] = 0xAB
        assert guest.memory[0x1000] == 0xAB
        (readable,) = guest.device.dma.map(0x1000, 16)
        assert readable.readonly


def test_timers_run_in_order_when_due() -> None:
    with Guest(Keeper) as guest:
        heard: list[str] = []
        guest.device.after(2, heard.append, "late")
        guest.device.after(1, heard.append, "soon")
        guest.device.after(1, heard.append, "never").cancel()
        guest.advance(1.5)
        assert heard == ["soon"]
        guest.advance(1)
        assert heard == ["soon", "late"]


def test_reset_cancels_timers() -> None:
    with Guest(Keeper) as guest:
        heard: list[str] = []
        guest.device.after(1, heard.append, "stale")
        guest.device.core.reset()
        guest.advance(2)
        assert heard == []


def test_background_work_hands_its_result_back() -> None:
    with Guest(Keeper) as guest:
        heard: list[int] = []
        guest.device.background(lambda a, b: a + b, 2, 3, done=heard.append)
        assert heard == []
        guest.advance()
        assert heard == [5]


def test_a_result_from_before_a_reset_is_dropped() -> None:
    with Guest(Keeper) as guest:
        heard: list[str] = []
        guest.device.background(str, "stale", done=heard.append)
        guest.device.core.reset()
        guest.device.background(str, "fresh", done=heard.append)
        guest.advance()
        assert heard == ["fresh"]


@pytest.mark.parametrize("reset", [False, True])
def test_background_work_needs_nobody_to_hear_of_it(reset: bool) -> None:
    with Guest(Keeper) as guest:
        done: list[int] = []
        guest.device.background(done.append, 1)
        if reset:
            guest.device.core.reset()
        guest.advance()
        assert done == [1]


def test_options_are_parsed_by_their_defaults_type() -> None:
    device = Keeper(size="64K", quick="yes", image="/tmp/x", pace="0x1")
    assert device.pace is Pace.FAST
    assert (device.size, device.label, device.quick, device.image) == (65536, "none", True, Path("/tmp/x"))
    device.core.close()


@pytest.mark.parametrize(("word", "value"), [("on", True), ("UP", True), ("0", False), ("down", False)])
def test_yes_and_no_have_other_words(word: str, value: bool) -> None:
    device = Keeper(quick=word)
    assert device.quick is value
    device.core.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sise": "1"}, "no option sise: did you mean size"),
        ({"size": "big"}, "size=big: expected a value of type int"),
        ({"pace": "2"}, "pace=2: expected a value of type Pace"),
        ({"quick": "perhaps"}, "expected yes or no"),
        ({"label": 3}, "expected a value of type str"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Keeper(**options)


@pytest.mark.parametrize("method", ["setup", "reset", "close"])
def test_nothing_is_left_behind_where_a_devices_own_method_raises(method: str, open_fds: set[int]) -> None:
    def fail(_: object) -> None:
        raise ValueError(method)

    kind = type("Failing", (Keeper,), {method: fail})
    with pytest.raises(ValueError, match=method), Guest(kind):
        pass
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds) + 1}


def test_a_device_leaves_no_descriptor_behind(open_fds: set[int]) -> None:
    with Guest(Keeper):
        pass
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds) + 1}
