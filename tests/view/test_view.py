"""The live view, with readings that a test makes, on a screen in memory."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text
from textual.widgets import DataTable, Static, Switch, TabbedContent

from bellwire.filters.observing.record import Record
from bellwired.commands.view.panels import CHANGED, FRESH, Devices, Memory, Rate, Registers, Tail
from bellwired.errors import CommandError
from view.fake_source import FakeSource, Session, device, register, watch

pytestmark = pytest.mark.slow  # half a second each: textual draws a whole screen


def cells(table: DataTable[Any]) -> list[list[Text]]:
    return [table.get_row_at(row) for row in range(table.row_count)]


def words(table: DataTable[Any]) -> list[list[str]]:
    return [[cell.plain for cell in row] for row in cells(table)]


def test_it_shows_the_devices_and_the_registers_of_the_first() -> None:
    source = FakeSource(device("disk"), device("net", state="failed"))
    source.registers = [register("status", 3, meaning="DONE|ERROR")]

    async def look(session: Session) -> None:
        assert words(session.view.query_one(Devices)) == [["disk", "edu", "running"], ["net", "edu", "failed"]]
        table = session.view.query_one(Registers)
        assert words(table) == [["status", "BAR0+0x004", "rw", "0x00000003", "DONE|ERROR"]]

    watch(source, look)


def test_it_begins_with_the_device_that_is_named() -> None:
    async def look(session: Session) -> None:
        assert "net" in str(session.view.query_one("#facts", Static).content)

    watch(FakeSource(device("disk"), device("net")), look, name="net")


def test_moving_the_cursor_shows_another_device() -> None:
    async def look(session: Session) -> None:
        session.view.query_one(Devices).focus()
        await session.pilot.press("down")
        await session.until(lambda: "net" in str(session.view.query_one("#facts", Static).content))

    watch(FakeSource(device("disk"), device("net")), look)


def test_a_changed_value_is_highlighted_for_some_readings() -> None:
    source = FakeSource(device("disk"))
    source.registers = [register("status", 0)]

    async def look(session: Session) -> None:
        table = session.view.query_one(Registers)
        styles = [cells(table)[0][3].style]
        source.registers = [register("status", 1)]
        for _ in range(FRESH + 1):
            await session.read()
            styles.append(cells(table)[0][3].style)
        assert styles == ["", *[CHANGED] * FRESH, ""]

    watch(source, look)


def test_counters_are_lines_of_their_rates() -> None:
    source = FakeSource(device("disk", statistics={"writes": 5, "resets": 0}))

    async def look(session: Session) -> None:
        source.known["disk"] = device("disk", statistics={"writes": 9, "resets": 0})
        session.view.query_one(TabbedContent).active = "tab-rates"
        await session.read()
        await session.pilot.pause()
        (row,) = session.view.query(Rate)
        assert str(row.query_one(".name", Static).content) == "writes"
        assert str(row.query_one(".number", Static).content).endswith("9")

    watch(source, look)


def test_guest_memory_is_listed_with_what_the_device_may_do() -> None:
    source = FakeSource(device("disk"))
    source.maps = [{"address": 0x1000, "size": 8192, "readable": True, "writable": False, "shared": True}]

    async def look(session: Session) -> None:
        assert words(session.view.query_one(Memory)) == [["0x1000", "0x2fff", "8.0 KiB", "read", "in place"]]

    watch(source, look)


def test_lines_of_the_log_are_added_once() -> None:
    source = FakeSource(device("disk"))
    source.log = [{"time": 1.0, "level": "info", "text": "one"}]

    async def look(session: Session) -> None:
        session.view.query_one(TabbedContent).active = "tab-log"
        await session.read()
        source.log.append({"time": 2.0, "level": "error", "text": "two"})
        await session.read()
        lines = [line.text.rstrip() for line in session.view.query_one("#log", Tail).lines]
        assert [line[9:] for line in lines] == ["one", "two"]

    watch(source, look)


def test_text_from_a_device_is_neither_markup_nor_control() -> None:
    source = FakeSource(device("disk", error="[bold]\x1b[2Jboo"))
    source.registers = [register("a", 0, meaning="[red]\x1b[2J")]

    async def look(session: Session) -> None:
        (row,) = words(session.view.query_one(Registers))
        assert row[4] == r"[red]\x1b[2J"
        assert r"\[bold]\x1b[2Jboo" in str(session.view.query_one("#facts", Static).content)

    watch(source, look)


def test_an_error_is_shown_with_its_hint_until_a_reading_works_again() -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        banner = session.view.query_one("#trouble", Static)
        assert not banner.display
        source.error = CommandError("no daemon runs", "start it")
        session.view.refresh_readings()
        await session.until(lambda: bool(banner.display))
        assert str(banner.content) == "no daemon runs: start it"
        source.error = None
        await session.read()
        assert not banner.display

    watch(source, look)


def test_a_paused_view_reads_nothing() -> None:
    async def look(session: Session) -> None:
        await session.pilot.press("space")
        before = session.view.readings
        session.view.refresh_readings()
        await session.pilot.pause()
        assert session.view.readings == before
        assert "paused" in session.view.title
        await session.pilot.press("space")
        await session.read()

    watch(FakeSource(device("disk")), look)


@pytest.mark.parametrize("key", ["f", "p", "i", "r"])
def test_a_view_that_may_not_change_anything_has_no_keys_for_it(key: str) -> None:
    async def look(session: Session) -> None:
        await session.pilot.press(key)
        await session.pilot.pause()
        assert len(session.view.screen_stack) == 1

    watch(FakeSource(device("disk")), look)


@pytest.mark.parametrize(
    ("keys", "done"),
    [
        (["p", *"go=1", "enter"], ("poke", "disk", "go=1", False)),
        (["p", *"go", "tab", "space", "shift+tab", "enter"], ("poke", "disk", "go", True)),
        (["i", "3", "enter"], ("interrupt", "disk", "3")),
        (["r", *"disk", "enter"], ("reset", "disk")),
        (["f", *"delay", "enter"], ("add", "disk", "delay")),
    ],
)
def test_keys_change_the_device_where_that_was_asked_for(keys: list[str], done: tuple[Any, ...]) -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        await session.pilot.press(keys[0])
        await session.until(lambda: len(session.view.screen_stack) == 2)
        await session.pilot.press(*(("=" if key == "=" else key) for key in keys[1:]))
        await session.until(lambda: bool(source.done))
        assert source.done == [done]

    watch(source, look, may_change=True)


@pytest.mark.parametrize("keys", [["r", *"other", "enter"], ["r", *"disk", "escape"]])
def test_a_reset_wants_the_name_of_the_device(keys: list[str]) -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        await session.pilot.press(keys[0])
        await session.until(lambda: len(session.view.screen_stack) == 2)
        await session.pilot.press(*keys[1:])
        await session.until(lambda: len(session.view.screen_stack) == 1)
        assert source.done == []

    watch(source, look, may_change=True)


def test_a_refused_change_is_told() -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        await session.pilot.press("p")
        await session.until(lambda: len(session.view.screen_stack) == 2)
        source.error = CommandError("[it] is constant")
        await session.pilot.press("x", "enter")
        await session.until(lambda: len(session.view._notifications) > 0)
        (told,) = session.view._notifications
        assert (told.message, told.severity, told.markup) == ("[it] is constant", "error", False)

    watch(source, look, may_change=True)


def text_of(tail: Tail) -> list[str]:
    return [line.text.rstrip() for line in tail.lines]


def test_a_key_begins_and_ends_a_trace_whose_events_are_shown_as_they_come() -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        await session.pilot.press("t")
        tail = session.view.query_one("#trace", Tail)
        source.records.put(Record(1.0, "write", "status", "", "mmio", "BAR0+0x4", 4, 3, "[DONE]"))
        await session.until(lambda: bool(tail.lines))
        assert text_of(tail)[0].endswith("write   status = 0x00000003 [DONE]  BAR0+0x4")
        assert source.traced == []
        await session.pilot.press("t")
        await session.until(lambda: source.traced == ["disk"])

    watch(source, look)


def test_a_trace_ends_with_the_view() -> None:
    source = FakeSource(device("disk"))

    async def look(session: Session) -> None:
        await session.pilot.press("t")

    watch(source, look)
    assert source.traced == ["disk"]


DELAY = {"label": "delay-2", "name": "delay", "arguments": {"read": "2ms"}, "report": '{"delayed": 7}'}


def test_filters_are_listed_with_what_they_have_found() -> None:
    source = FakeSource(device("disk"))
    source.filters = [DELAY]

    async def look(session: Session) -> None:
        session.view.query_one(TabbedContent).active = "tab-filters"
        await session.pilot.pause()
        await session.read()
        assert str(session.view.query_one(".filter .name", Static).content) == "delay:read=2ms"
        assert str(session.view.query_one(".filter .found", Static).content) == '{"delayed": 7}'
        assert session.view.query_one(Switch).disabled

    watch(source, look)


def test_a_switch_takes_a_filter_out_and_puts_it_in_again() -> None:
    source = FakeSource(device("disk"))
    source.filters = [DELAY]

    async def look(session: Session) -> None:
        session.view.query_one(TabbedContent).active = "tab-filters"
        await session.pilot.pause()
        session.view.query_one(Switch).toggle()
        await session.until(lambda: bool(source.done))
        source.filters = []
        await session.read()
        assert str(session.view.query_one(".filter .found", Static).content) == "taken out"
        session.view.query_one(Switch).toggle()
        await session.until(lambda: len(source.done) == 2)
        assert source.done == [("remove", "disk", "delay-2"), ("add", "disk", "delay:read=2ms")]

    watch(source, look, may_change=True)
