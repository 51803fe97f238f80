"""Which events a schedule strikes."""

from __future__ import annotations

import pytest

from bellwire import OptionError
from bellwire.bundled.bell import Bell
from bellwire.faults import Fault, Schedule
from bellwire.faults.condition import Condition
from bellwire.faults.schedule import Trigger
from bellwire.testing import Guest


class Nothing(Fault, name="nothing"):
    """It has the arguments of a schedule only."""


def parse(text: str) -> Schedule:
    return Nothing(**dict(word.split("=", 1) for word in text.split())).schedule


def struck(text: str, events: int) -> list[int]:
    """The numbers of the events that are struck, at time 0."""
    with Guest(Bell) as guest:
        trigger = Trigger(parse(text), guest)
        trigger.start()
        return [number for number in range(1, events + 1) if trigger.strikes()]


def test_without_any_part_every_event_is_struck() -> None:
    assert struck("", 3) == [1, 2, 3]


def test_every_strikes_each_so_manieth() -> None:
    assert struck("every=3", 10) == [3, 6, 9]


def test_at_strikes_one() -> None:
    assert struck("at=7", 20) == [7]


def test_at_with_every_is_the_first_of_them() -> None:
    assert struck("at=2 every=5", 15) == [2, 7, 12]


def test_times_is_a_limit() -> None:
    assert struck("every=2 times=3", 20) == [2, 4, 6]


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 1.0])
def test_the_same_seed_strikes_the_same_events(p: float) -> None:
    first = struck(f"p={p} seed=42", 200)
    assert first == struck(f"p={p} seed=42", 200)
    assert len(first) == pytest.approx(200 * p, abs=20)


def test_another_seed_strikes_others_about_as_often() -> None:
    first, second = struck("p=0.1 seed=1", 2000), struck("p=0.1 seed=2", 2000)
    assert first != second
    assert 140 < len(first) < 260
    assert 140 < len(second) < 260


def in_time(text: str) -> list[float]:
    """When events are struck, with one each 0.5 seconds, for 5 seconds."""
    with Guest(Bell) as guest:
        trigger = Trigger(parse(text), guest)
        trigger.start()
        found = []
        for _ in range(10):
            if trigger.strikes():
                found.append(guest.now)
            guest.advance(0.5)
        return found


def test_after_waits() -> None:
    assert in_time("after=3s") == [3.0, 3.5, 4.0, 4.5]


def test_for_ends() -> None:
    assert in_time("for=1500ms") == [0.0, 0.5, 1.0]


def test_after_and_for_are_a_window() -> None:
    assert in_time("after=2s for=1s") == [2.0, 2.5]


def test_events_before_the_window_do_not_count() -> None:
    assert in_time("after=2s at=2") == [2.5]


def test_at_with_for_goes_on_from_that_event() -> None:
    assert in_time("at=3 for=1s") == [1.0, 1.5]


@pytest.mark.same_device("has bound a condition to the device's registers")
def test_when_counts_only_events_at_which_it_holds() -> None:
    with Guest(Bell) as guest:
        schedule = parse("when=bar0.plain>=5 at=2")
        assert schedule.when is not None
        with pytest.raises(OptionError, match=r"when=bar0\.plain>=5: there is no register bar0\.plain"):
            schedule.when.bind(guest.device)
        schedule = parse("when=plain>=5 at=2")
        assert schedule.when is not None
        trigger = Trigger(schedule, guest, schedule.when.bind(guest.device))
        trigger.start()
        found = []
        for value in (4, 5, 4, 6, 7):
            guest.write(Bell.plain, value)
            found.append(trigger.strikes())
        assert found == [False, False, False, True, False]


def test_a_trigger_tells_when_its_window_opens_and_closes() -> None:
    turns: list[tuple[float, bool]] = []
    with Guest(Bell) as guest:
        trigger = Trigger(parse("after=1s for=2s"), guest, None, lambda on: turns.append((guest.now, on)))
        trigger.start()
        guest.advance(10)
    assert turns == [(1.0, True), (3.0, False)]


def test_a_stopped_trigger_strikes_nothing_any_more() -> None:
    with Guest(Bell) as guest:
        trigger = Trigger(parse("after=1s"), guest)
        trigger.start()
        trigger.stop()
        guest.advance(2)
        assert not trigger.strikes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evry=3", "filter nothing has no option evry: did you mean every?"),
        ("every=often", "option every=often: expected a value of type int"),
        ("at=-1", "option at=-1: expected at least 0"),
        ("p=1.5", "option p=1.5: expected 0.0 to 1.0"),
        ("p=nan", "option p=nan: expected a finite number"),
        ("after=long", "option after=long: expected a duration, as 2ms, 10us, 1.5s or 1min"),
        ("for=2000000s", "option for=2000000s: expected at most 86400s"),
        ("when=a+b", r"when=a+b: expected a register, as in mmio.status.DONE"),
    ],
)
def test_an_error_names_the_part(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_a_fault_is_shown_as_it_is_written() -> None:
    given = {"every": 3, "p": 0.5, "seed": 7, "after": "2s", "for": "500ms", "when": "!mmio.status.DONE"}
    assert str(Nothing(**given)) == "nothing:every=3,p=0.5,seed=7,after=2s,for=500ms,when=!mmio.status.DONE"


def test_conditions_are_equal_by_their_text() -> None:
    assert Condition("a.b") == Condition("a.b")
    assert Condition("a.b") != Condition("a.c")
