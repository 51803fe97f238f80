"""The view itself: devices at the left, and one of them in detail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Header, Static, TabbedContent, TabPane

from bellwire import BellwireError
from bellwired import terminal
from bellwired.commands import show
from bellwired.commands.view.asking import Ask
from bellwired.commands.view.history import History
from bellwired.commands.view.panels import Devices, Filters, Memory, Rates, Registers, Tail, plain
from bellwired.commands.view.source import Reading, Source
from bellwired.commands.view.tracing import Ended, Sink

EVERY = 0.5
"""Seconds between two readings."""
SHARE = 4
"""A reading that takes longer than usual, as of a device with thousands of registers, is followed by a longer pause:
the view keeps a device busy for a fifth of its time at most."""


class View(App[None]):
    """A live view of the devices of ``source``, first of the device ``name``.

    It changes nothing, unless ``may_change``: then keys poke registers, ring doorbells, raise interrupts and reset.
    """

    TITLE = "Bellwire"
    CSS = """
    #devices { width: 44; height: 1fr; border: round $primary; }
    #facts { height: auto; padding: 0 1; }
    #trouble { height: auto; padding: 0 1; background: $error; color: $text; display: none; }
    TabbedContent, Grid, Tail, Rates, Filters { height: 1fr; }
    .rate { height: 2; padding: 0 1; }
    .rate .name { width: 24; }
    .rate Sparkline { width: 1fr; height: 1; }
    .rate .number { width: 30; text-align: right; }
    .filter { height: 3; padding: 0 1; }
    .filter Static { padding: 1; width: 1fr; }
    Ask { align: center middle; }
    #ask { width: 70; height: auto; border: thick $primary; padding: 1 2; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("space", "pause", "pause"),
        Binding("t", "trace", "trace on/off"),
        Binding("f", "filter", "add a filter"),
        Binding("p", "poke", "poke"),
        Binding("i", "interrupt", "interrupt"),
        Binding("r", "reset", "reset"),
    ]
    _CHANGING: ClassVar[frozenset[str]] = frozenset({"filter", "poke", "interrupt", "reset"})

    def __init__(self, source: Source, name: str | None = None, *, may_change: bool = False) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._may_change = may_change
        self._paused = False
        self._histories: dict[str, History] = {}
        self.every = EVERY
        self.readings = 0
        """How often everything has been shown."""
        self._sink: Sink | None = None
        """Where the records of the trace go, while there is one."""
        self.sub_title = "f, p, i and r change the device" if may_change else "read-only"

    def compose(self) -> ComposeResult:
        """The panels."""
        yield Header(icon="")
        with Horizontal():
            yield Devices()
            with Vertical():
                yield Static(id="trouble")
                yield Static(id="facts")
                with TabbedContent():
                    with TabPane("registers", id="tab-registers"):
                        yield Registers()
                    with TabPane("rates", id="tab-rates"):
                        yield Rates()
                    with TabPane("trace", id="tab-trace"):
                        yield Tail("trace")
                    with TabPane("filters", id="tab-filters"):
                        yield Filters(may_change=self._may_change)
                    with TabPane("log", id="tab-log"):
                        yield Tail("log")
                    with TabPane("memory", id="tab-memory"):
                        yield Memory()
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self.refresh_readings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys that change a device are not there in a view that may not."""
        return self._may_change or action not in self._CHANGING

    def on_data_table_row_highlighted(self, event: Devices.RowHighlighted) -> None:
        """The cursor moved to a device: show that."""
        key = event.row_key.value
        if isinstance(event.data_table, Devices) and key is not None and key != self._name:
            self._name = key
            self.query_one("#log", Tail).begin()
            self.query_one(Filters).begin()
            self._end_trace()
            self.refresh_readings()

    @work(group="reading", exclusive=True)
    async def refresh_readings(self) -> None:
        """Read at once, and then again and again. Another call takes the place of this one."""
        while True:
            begun = time.monotonic()
            if not self._paused:
                await self._read()
            await asyncio.sleep(max(self.every, SHARE * (time.monotonic() - begun)))

    async def _read(self) -> None:
        """Read everything that is shown, and show it."""
        try:
            devices = await asyncio.to_thread(self._source.devices)
            names = [each["name"] for each in devices]
            if self._name not in names:
                self._name = names[0] if names else None
            reading = None if self._name is None else await asyncio.to_thread(self._source.read, self._name)
        except BellwireError as error:
            self._tell(error)
            return
        self._tell(None)
        table = self.query_one(Devices)
        table.show_devices(devices)
        if reading is not None:
            table.move_cursor(row=names.index(reading.device["name"]))
            self._show(reading)
        self.readings += 1

    def _show(self, reading: Reading) -> None:
        device = reading.device
        self.query_one("#facts", Static).update(_facts(reading))
        history = self._histories.setdefault(device["name"], History())
        history.add(time.monotonic(), device["statistics"])
        self.query_one(Registers).show_registers(reading.registers)
        self.query_one(Rates).show_history(history)
        self.query_one(Memory).show_maps(reading.maps)
        self.query_one("#log", Tail).show_lines(reading.log)
        self.query_one(Filters).show_filters(reading.filters)

    def _tell(self, error: BellwireError | None) -> None:
        banner = self.query_one("#trouble", Static)
        banner.display = error is not None
        if error is not None:
            hint = getattr(error, "hint", "")
            banner.update(plain(f"{error}: {hint}" if hint else error))

    def on_unmount(self) -> None:
        """The view ends."""
        self._end_trace()

    def action_trace(self) -> None:
        """Begin to trace the device that is shown, or end that."""
        if self._sink is not None:
            self._end_trace()
        elif self._name is not None:
            self.query_one("#trace", Tail).begin()
            self.query_one(TabbedContent).active = "tab-trace"
            self._sink = Sink(
                lambda records: self.call_from_thread(self.query_one("#trace", Tail).show_records, records)
            )
            self._trace(self._name, self._sink)

    def _end_trace(self) -> None:
        if self._sink is not None:
            self._sink.end()
            self._sink = None

    @work(thread=True, group="trace")
    def _trace(self, name: str, sink: Sink) -> None:
        try:
            self._source.trace(name, sink)
        except Ended:
            return
        except BellwireError as error:
            self.call_from_thread(self.notify, terminal.line(error), severity="error", markup=False)
        if self._sink is sink:
            self._sink = None

    async def on_filters_switched(self, switched: Filters.Switched) -> None:
        """Put a filter in, or take it out."""
        if switched.on:
            await self._change(lambda name: self._source.add_filter(name, switched.text), f"{switched.text} is in")
        else:
            await self._change(lambda name: self._source.remove_filter(name, switched.label), f"{switched.text} is out")

    @work
    async def action_filter(self) -> None:
        """Ask for a filter, and put it in."""
        answer = await self.push_screen_wait(Ask(f"Put a filter before {self._name}", "NAME or NAME:KEY=VALUE,..."))
        if answer is not None:
            await self._change(lambda name: self._source.add_filter(name, answer[0]), f"{answer[0]} is in")

    def action_pause(self) -> None:
        """Stop and go on reading."""
        self._paused = not self._paused
        self.title = "Bellwire (paused)" if self._paused else "Bellwire"

    @work
    async def action_poke(self) -> None:
        """Ask what to poke, and do it."""
        example = "REGISTER=VALUE, DOORBELL or DOORBELL=VALUE"
        answer = await self.push_screen_wait(Ask(f"Poke {self._name}", example, "as a guest would"))
        if answer is not None and self._name is not None:
            text, guest = answer
            await self._change(lambda name: self._source.poke(name, text, guest=guest), f"poked {text}")

    @work
    async def action_interrupt(self) -> None:
        """Ask for a vector, and raise it."""
        answer = await self.push_screen_wait(Ask(f"Raise an interrupt of {self._name}", "the number of a vector"))
        if answer is not None:
            await self._change(lambda name: self._source.interrupt(name, answer[0]), f"raised interrupt {answer[0]}")

    @work
    async def action_reset(self) -> None:
        """Reset the device, if its name is typed."""
        answer = await self.push_screen_wait(Ask(f"Reset {self._name}? Type its name", self._name or ""))
        if answer is not None and answer[0] == self._name:
            await self._change(self._source.reset, "reset")

    async def _change(self, do: Callable[[str], None], done: str) -> None:
        if self._name is None:
            return
        try:
            await asyncio.to_thread(do, self._name)
        except BellwireError as error:
            self.notify(terminal.line(error), severity="error", markup=False)
        else:
            self.notify(terminal.line(f"{self._name}: {done}"), markup=False)
        self.refresh_readings()


def _facts(reading: Reading) -> str:
    """Two lines about a device, as markup."""
    device = reading.device
    since = show.ago(device["since"])
    first = f"[b]{show.text(device['name'])}[/b] ({show.text(device['device'])})  {show.state(device['state'])} {since}"
    if device["restarts"]:
        first += f"  restarts {device['restarts']}"
    client = device["client"]
    if device["error"]:
        second = f"[red]{show.text(device['error'])}[/red]"
    elif client:
        second = f"client: process {client['pid']}, for {show.ago(client['since'])}, {client['maps']} maps, "
        second += show.size(client["bytes"])
    else:
        second = "no client is connected"
    return f"{first}\n{second}"
