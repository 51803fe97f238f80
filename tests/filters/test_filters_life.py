"""How filters come and go: paths, errors, arguments, and classes that are refused."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pytest

from bellwire import DeclarationError, OptionError
from bellwire.filters import Filter, FilterError, Interrupt, Read, Write
from bellwire.testing.guest import Guest
from filters.copier import All, Copier, Slow, Status


def test_a_filter_that_raises_is_taken_out_and_the_device_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Filter):
        def after_read(self, read: Read) -> None:
            raise ValueError("of mine")

    with Guest(Copier, filters=[Broken()]) as guest:
        assert guest.read(Copier.status) == Status.READY
        assert len(guest.filters) == 0
        assert guest.filters.failures == {"broken": "ValueError: of mine"}
        assert "filter broken failed, and is taken out: ValueError: of mine" in caplog.text


class Hold(Filter):
    """Holds every write for ever."""

    delays = True

    def before_write(self, write: Write) -> None:
        write.delay(math.inf)


def test_what_a_filter_holds_goes_on_when_it_is_taken_out_and_not_when_another_is() -> None:
    hold, look = Hold(), All()
    with Guest(Copier, filters=[look, hold]) as guest:
        guest.write(Copier.low, 1)
        guest.filters.remove(look)
        assert guest.device.low == 0
        guest.filters.remove(hold)
        assert guest.device.low == 1


def test_a_filter_sees_nothing_after_it_was_taken_out() -> None:
    class After(Filter):
        seen = 0

        def after_write(self, write: Write) -> None:
            self.seen += 1

    after, hold = After(), Hold()
    with Guest(Copier, filters=[after, hold]) as guest:
        guest.write(Copier.low, 1)
        guest.filters.remove(after)
        guest.filters.remove(hold)
        assert (after.seen, guest.device.low) == (0, 1)


def test_what_a_filter_holds_goes_on_when_it_raises() -> None:
    class Raises(Hold):
        def start(self) -> None:
            self.after(0.001, self.fail)

        def fail(self) -> None:
            raise ValueError("of mine")

    with Guest(Copier, filters=[Raises()]) as guest:
        guest.write(Copier.low, 1)
        guest.write(Copier.high, 2)
        assert (guest.device.low, guest.device.high) == (0, 0)
        guest.advance(0.001)
        assert (guest.device.low, guest.device.high) == (1, 2)
        assert guest.filters.failures == {"raises": "ValueError: of mine"}


def test_an_event_on_its_way_may_release_the_others() -> None:
    class Once(Filter):
        delays = True

        def before_write(self, write: Write) -> None:
            write.delay(0.001 if write.value == 1 else math.inf)

        def after_write(self, write: Write) -> None:
            self.release()

    with Guest(Copier, filters=[Once()]) as guest:
        for value in (1, 2, 3):
            guest.write(Copier.low, value)
        assert guest.device.low == 0
        guest.advance(0.001)
        assert guest.device.low == 3
        assert len(guest.filters.arrivals) == 0


def test_a_reset_on_its_way_drops_what_waits_behind_it_once() -> None:
    class Slow(Filter):
        delays = True

        def before_config_write(self, write: Write) -> None:
            write.delay(0.001)

        def before_read(self, read: Read) -> None:
            read.delay(0)

    with Guest(Copier, filters=[Slow()]) as guest:
        express = guest.device.core.config.at[
            0x10
        ]  # Device Control has the bit that resets the function (PCIe 6.0 §7.5.3.4)
        guest.advance(0.01)
        guest.device.low = 5
        guest.config_write(express + 8, 1 << 15, 2)
        guest.write(Copier.low, 9)
        guest.advance(0.001)
        assert guest.device.low == 0


def test_an_error_of_a_strict_filter_goes_to_the_caller() -> None:
    class Check(Filter):
        strict = True

        def before_write(self, write: Write) -> None:
            raise AssertionError("never write")

    with Guest(Copier, filters=[Check()]) as guest, pytest.raises(AssertionError, match="never write"):
        guest.write(Copier.low, 1)


def paths(guest: Guest[Any]) -> list[object]:
    core = guest.device.core
    names = (
        "reader",
        "writer",
        "ring",
        "ring_value",
        "ring_in_row",
        "ioregion_read",
        "ioregion_write",
        "call",
        "reset",
    )
    parts = [getattr(core, name) for name in (*names, "join", "remapped")]
    parts += [core.signals.trigger, core.signals.drive, core.signals.resend, core.host]
    return [*parts, core.reader(0, 0, 4).plain, vars(core.signals).keys()]


def test_without_a_filter_the_paths_are_those_without_this_room() -> None:
    with Guest(Copier) as guest:
        before, cells = paths(guest), guest.device.core.spaces[0]
        assert not {"reader", "call", "reset"} & vars(guest.device.core).keys()
        look = All()
        guest.filters.add(look)
        assert paths(guest) != before
        guest.filters.remove(look)
        assert paths(guest) == before
        assert guest.device.core.spaces[0] is cells
        assert not {"reader", "call", "reset"} & vars(guest.device.core).keys()


def test_a_filter_is_only_in_the_paths_of_its_events() -> None:
    class Irqs(Filter):
        def after_interrupt(self, interrupt: Interrupt) -> None:
            pass

    with Guest(Copier) as guest:
        core = guest.device.core
        reader, ring, call = core.reader, core.ring, core.call
        guest.filters.add(Irqs())
        assert (core.reader, core.ring, core.call) == (reader, ring, call)
        assert core.reader(0, 0, 4).plain
        assert not guest.device.dma.copied


def test_the_device_s_own_way_to_its_registers_is_not_the_guest_s() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest:
        look.seen.clear()
        guest.device.write_bar(0, 0x10, bytes(4))
        assert guest.device.read_bar(0, 0x10, 4) == bytes(4)
        assert not look.seen


def test_a_filter_whose_start_or_wants_raises_is_not_put_in() -> None:
    class Raises(Filter):
        def start(self) -> None:
            raise OSError("no room")

    class Unsure(Filter):
        def wants(self, method: str) -> bool:
            raise LookupError(method)

        def before_read(self, read: Read) -> None: ...

    with Guest(Copier) as guest:
        before = paths(guest)
        for broken in (Raises(), Unsure()):
            with pytest.raises((OSError, LookupError)):
                guest.filters.add(broken)
            assert len(guest.filters) == 0
            assert paths(guest) == before


def test_the_clock_of_a_filter_is_the_guest_s() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest:
        assert look.now == 0.0
        guest.advance(2)
        assert look.now == 2.0


def test_a_filter_may_leave() -> None:
    class Once(Filter):
        def after_read(self, read: Read) -> None:
            read.value = 7
            self.leave()

    with Guest(Copier, filters=[Once()]) as guest:
        assert guest.read(Copier.low) == 7
        guest.advance()
        assert guest.read(Copier.low) == 0
        assert len(guest.filters) == 0


def test_random_numbers_depend_on_the_seed() -> None:
    assert Slow(seed=3).random.random() == Slow(seed="3").random.random() != Slow().random.random()


def test_arguments_are_checked() -> None:
    with pytest.raises(OptionError, match="filter slow has no option raed: did you mean read"):
        Slow(raed="2ms")
    with pytest.raises(OptionError, match="option read=2 parsecs: expected a duration, as 2ms"):
        Slow(read="2 parsecs")
    assert str(Slow(read="2ms", write=1)) == "slow:read=2ms,write=1s"


def test_a_method_for_no_event_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"before_raed: a filter has no such event: did you mean before_read\?"):

        class Typo(Filter):
            def before_raed(self, read: Read) -> None: ...


def test_a_filter_is_in_one_device_once() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest, Guest(Copier) as other:
        with pytest.raises(FilterError, match="in a device already"):
            other.filters.add(look)
        with pytest.raises(FilterError, match="no filter trace in copier: it has all"):
            guest.filters.remove("trace")


def test_the_example_of_the_class_works() -> None:
    source = textwrap.dedent((Filter.__doc__ or "").partition("::\n")[2].partition("    A ``before_``")[0])
    names: dict[str, Any] = {}
    exec(source, names)
    with Guest(Copier, filters=[names["Busy"](times=1)]) as guest:
        assert guest.read(Copier.status) == Status.READY | Status.BUSY
        assert guest.read(Copier.status) == Status.READY
