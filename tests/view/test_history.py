"""The rates of counters."""

from __future__ import annotations

from bellwired.commands.view.history import LENGTH, History


def history(*readings: dict[str, int]) -> History:
    """Readings that are two seconds apart."""
    made = History()
    for number, counters in enumerate(readings):
        made.add(100.0 + 2 * number, counters)
    return made


def test_a_rate_is_what_a_counter_has_grown_by_a_second() -> None:
    assert list(history({"reads": 10}, {"reads": 16}, {"reads": 17}).rates["reads"])[-3:] == [0.0, 3.0, 0.5]


def test_what_was_there_at_the_first_reading_is_no_rate() -> None:
    assert set(history({"reads": 1000}).rates["reads"]) == {0.0}


def test_a_counter_that_never_counted_has_no_line() -> None:
    assert history({"reads": 0}, {"reads": 0}).rates == {}


def test_a_counter_that_went_down_counts_from_zero() -> None:
    made = history({"reads": 50}, {"reads": 4})
    assert made.rates["reads"][-1] == 2.0
    assert made.totals["reads"] == 4


def test_levels_are_no_rates() -> None:
    assert history({"dma_maps": 3, "connected": 1}, {"dma_maps": 4, "connected": 1}).rates == {}


def test_it_keeps_a_bounded_number_of_rates() -> None:
    assert len(history(*({"reads": number} for number in range(2 * LENGTH))).rates["reads"]) == LENGTH
