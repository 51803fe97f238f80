"""The panels of the view: each shows one part of a reading, and changes only what differs from the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import DataTable, RichLog, Sparkline, Static, Switch

from bellwire.filters.observing.record import Record
from bellwired import terminal
from bellwired.commands import show
from bellwired.commands.trace import as_text
from bellwired.commands.view.history import History
from vfio_user import RegionIndex

FRESH = 3
"""Readings for which a changed value is highlighted."""
CHANGED = "bold black on yellow"


class Grid(DataTable[Text]):
    """A table whose rows have keys. Showing rows again changes cells in place, so the cursor stays where it is."""

    def __init__(self, *columns: str, **options: Any) -> None:
        super().__init__(cursor_type="row", zebra_stripes=True, **options)
        self._names = columns
        self._shown: dict[str, tuple[Text, ...]] = {}

    def on_mount(self) -> None:
        """Make the columns."""
        for name in self._names:
            self.add_column(name, key=name)

    def show_rows(self, rows: dict[str, tuple[Text, ...]]) -> None:
        """Show these rows, by key."""
        if list(rows) != list(self._shown):
            at = self.cursor_row
            self.clear()
            for key, cells in rows.items():
                self.add_row(*cells, key=key)
            self.move_cursor(row=min(at, max(0, len(rows) - 1)))
        else:
            for key, cells in rows.items():
                for name, cell, before in zip(self._names, cells, self._shown[key], strict=True):
                    if (cell.plain, cell.style) != (before.plain, before.style):
                        self.update_cell(key, name, cell, update_width=True)
        self._shown = rows


class Devices(Grid):
    """All devices."""

    def __init__(self) -> None:
        super().__init__("device", "kind", "state", id="devices")
        self.border_title = "devices"

    def show_devices(self, devices: Sequence[dict[str, Any]]) -> None:
        """Show these descriptions."""
        self.show_rows(
            {
                each["name"]: (
                    plain(each["name"]),
                    plain(each["device"]),
                    Text("guest" if each["connected"] else each["state"], show.COLOURS.get(each["state"], "")),
                )
                for each in devices
            }
        )


class Registers(Grid):
    """The registers, decoded. A value that has changed is highlighted for a while."""

    def __init__(self) -> None:
        super().__init__("register", "where", "access", "value", "meaning", id="registers")
        self._values: dict[str, int] = {}
        self._fresh: dict[str, int] = {}

    def show_registers(self, registers: Sequence[dict[str, Any]]) -> None:
        """Show the registers of one device."""
        same = [each["name"] for each in registers] == list(self._values)
        for each in registers:
            name, value = each["name"], each["value"]
            if same and self._values[name] != value:
                self._fresh[name] = FRESH
            elif not same or self._fresh.get(name, 0) <= 1:
                self._fresh.pop(name, None)
            else:
                self._fresh[name] -= 1
        self._values = {each["name"]: each["value"] for each in registers}
        self.show_rows({each["name"]: self._row(each) for each in registers})

    def _row(self, each: dict[str, Any]) -> tuple[Text, ...]:
        style = CHANGED if each["name"] in self._fresh else ""
        place = "config" if each["bar"] == RegionIndex.CONFIG else f"BAR{each['bar']}"
        return (
            plain(each["name"]),
            Text(f"{place}+{each['offset']:#05x}"),
            plain(each["access"]),
            Text(f"{each['value']:#0{2 + 2 * each['size']}x}", style),
            Text(terminal.line(each["meaning"]), style),
        )


class Memory(Grid):
    """The guest memory that the device may use."""

    def __init__(self) -> None:
        super().__init__("from", "to", "size", "device may", "reached", id="memory")

    def show_maps(self, maps: Sequence[dict[str, Any]]) -> None:
        """Show the client's maps."""
        self.show_rows(
            {
                hex(each["address"]): (
                    Text(f"{each['address']:#x}"),
                    Text(f"{each['address'] + each['size'] - 1:#x}"),
                    Text(show.size(each["size"])),
                    Text("/".join(word for word, may in _rights(each) if may) or "nothing"),
                    Text("in place" if each["shared"] else "by messages"),
                )
                for each in maps
            }
        )


class Rates(VerticalScroll):
    """A sparkline for each counter that counts."""

    def __init__(self) -> None:
        super().__init__(id="rates")
        self._rows: dict[str, Rate] = {}

    def show_history(self, history: History) -> None:
        """Show the rates of one device."""
        for name in list(self._rows):
            if name not in history.rates:
                self._rows.pop(name).remove()
        for name, rates in history.rates.items():
            if name not in self._rows:
                self._rows[name] = Rate(name)
                self.mount(self._rows[name])
            self._rows[name].show_rate(list(rates), history.totals[name])


class Rate(Horizontal):
    """One counter: its name, its rates as a line, the latest rate and the total."""

    def __init__(self, name: str) -> None:
        super().__init__(classes="rate")
        self._label = name
        self._line = Sparkline([0.0], summary_function=max)
        self._text = Static("", classes="number")

    def compose(self) -> ComposeResult:
        """The three parts."""
        yield Static(plain(self._label.replace("_", " ")), classes="name")
        yield self._line
        yield self._text

    def show_rate(self, rates: list[float], total: int) -> None:
        """Show the latest rates."""
        self._line.data = rates
        self._text.update(f"{rates[-1]:,.0f}/s   {total:,}")


class Filters(VerticalScroll):
    """The filters of the device, from the guest's side on, each with a switch that takes it out and puts it in again.

    Without ``may_change`` the switches cannot be moved.
    """

    class Switched(Message):
        """A switch was moved: the filter ``text`` shall be there, or the one with ``label`` shall not."""

        def __init__(self, text: str, label: str, *, on: bool) -> None:
            super().__init__()
            self.text = text
            self.label = label
            self.on = on

    def __init__(self, *, may_change: bool) -> None:
        super().__init__(id="filters")
        self._may_change = may_change
        self._rows: dict[str, Horizontal] = {}
        self._labels: dict[str, str] = {}

    def show_filters(self, filters: Sequence[dict[str, Any]]) -> None:
        """Show the filters that are there. One that was taken out keeps its row, with its switch off."""
        there = {_filter_text(each): each for each in filters}
        self._labels = {text: each["label"] for text, each in there.items()}
        for text in there:
            if text not in self._rows:
                row = self._rows[text] = Horizontal(
                    Switch(value=True, disabled=not self._may_change, name=text, animate=False),
                    Static(plain(text), classes="name"),
                    Static("", classes="found"),
                    classes="filter",
                )
                self.mount(row)
        for text, row in self._rows.items():
            if not row.is_mounted:
                continue
            with self.prevent(Switch.Changed):
                row.query_one(Switch).value = text in there
            row.query_one(".found", Static).update(plain(there[text]["report"] if text in there else "taken out"))

    def begin(self) -> None:
        """Another device is shown."""
        self._rows.clear()
        self.query(".filter").remove()

    def on_switch_changed(self, changed: Switch.Changed) -> None:
        """A switch was moved."""
        changed.stop()
        text = changed.switch.name or ""
        self.post_message(self.Switched(text, self._labels.get(text, ""), on=changed.value))


class Tail(RichLog):
    """The last lines of a log."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name, max_lines=1000, wrap=True)
        self._last: tuple[float, str] | None = None

    def show_lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Add the lines that came after those shown last."""
        known = [(each["time"], each["text"]) for each in lines]
        start = known.index(self._last) + 1 if self._last in known else 0
        for each in lines[start:]:
            said = Text(f"{show.clock(each['time'])[11:]} ", "dim")
            said.append(terminal.paragraph(each["text"]), show.LEVELS.get(each["level"], ""))
            self.write(said)
        if known:
            self._last = known[-1]

    def show_records(self, records: Sequence[Record]) -> None:
        """Add records of a trace."""
        for record in records:
            self.write(as_text(record))

    def begin(self) -> None:
        """Forget the lines: another device is shown."""
        self.clear()
        self._last = None


def plain(value: object) -> Text:
    """Outside text as one line that controls nothing."""
    return Text(terminal.line(value))


def _filter_text(each: dict[str, Any]) -> str:
    """A filter as a user would write it."""
    arguments = ",".join(f"{name}={value}" for name, value in each["arguments"].items())
    return f"{each['name']}:{arguments}" if arguments else str(each["name"])


def _rights(each: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    return ("read", each["readable"]), ("write", each["writable"])
