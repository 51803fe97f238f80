"""A source of readings that a test changes."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from bellwire import BellwireError
from bellwire.filters.observing.record import Record
from bellwired.commands.trace import Prints
from bellwired.commands.view.app import View
from bellwired.commands.view.source import Reading, Source

PATIENCE = 60.0


def device(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name, "device": "edu", "state": "running", "since": time.time(), "connected": False, "restarts": 0,
        "error": "", "client": None, "statistics": {},
    } | facts  # fmt: skip


def register(name: str, value: int, **facts: Any) -> dict[str, Any]:
    return {"name": name, "bar": 0, "offset": 4, "size": 4, "access": "rw", "value": value, "meaning": ""} | facts


class FakeSource(Source):
    def __init__(self, *devices: dict[str, Any]) -> None:
        self.known = {each["name"]: each for each in devices}
        self.registers: list[dict[str, Any]] = []
        self.maps: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.filters: list[dict[str, Any]] = []
        self.records: queue.Queue[Record] = queue.Queue()
        self.traced: list[str] = []
        """The devices whose traces have ended."""
        self.done: list[tuple[Any, ...]] = []
        self.error: BellwireError | None = None

    def devices(self) -> list[dict[str, Any]]:
        if self.error is not None:
            raise self.error
        return list(self.known.values())

    def read(self, name: str) -> Reading:
        return Reading(self.known[name], list(self.registers), list(self.maps), list(self.log), list(self.filters))

    def trace(self, name: str, printer: Prints) -> None:
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    printer.print(iter([(1, self.records.get(timeout=0.01))]))
                printer.print(iter([]))
        finally:
            self.traced.append(name)

    def add_filter(self, name: str, text: str) -> None:
        self.done.append(("add", name, text))

    def remove_filter(self, name: str, label: str) -> None:
        self.done.append(("remove", name, label))

    def poke(self, name: str, text: str, *, guest: bool) -> None:
        if self.error is not None:
            raise self.error
        self.done.append(("poke", name, text, guest))

    def interrupt(self, name: str, text: str) -> None:
        self.done.append(("interrupt", name, text))

    def reset(self, name: str) -> None:
        self.done.append(("reset", name))


class Session:
    """A view of a fake source, on a screen that only exists in memory."""

    def __init__(self, view: View, pilot: Pilot[None]) -> None:
        self.view = view
        self.pilot = pilot

    async def read(self) -> None:
        """Have the view read once more."""
        before = self.view.readings
        self.view.refresh_readings()
        await self.until(lambda: self.view.readings > before)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.pilot.pause()

    def text(self, selector: str = "Screen") -> str:
        """What the screen shows, or what a table has."""
        return self.view.export_screenshot() if selector == "Screen" else str(self.view.query_one(selector).render())


def watch(source: FakeSource, work: Callable[[Session], Awaitable[None]], **options: Any) -> None:
    """Run ``work`` with a view of ``source`` that reads when it is told to, and once at its start."""

    async def run() -> None:
        view = View(source, **options)
        view.every = 1e6
        async with view.run_test(size=(120, 36)) as pilot:
            session = Session(view, pilot)
            await session.until(lambda: view.readings > 0 or source.error is not None)
            await pilot.pause()
            await work(session)

    asyncio.run(run())
