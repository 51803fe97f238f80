"""A chain: the filters that take part in one kind of event, in the order in which it passes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bellwire.filters.events import Event
from bellwire.filters.filter import Filter

Method = Callable[[Any], None]
Link = tuple[Filter, Method | None, Method | None]
Broken = Callable[[Filter, BaseException], None]


class Chain:
    """The methods of ``filters`` for events of ``kind``. It is true if there is any."""

    def __init__(self, filters: Iterable[Filter], kind: str, broken: Broken) -> None:
        self._links: list[Link] = []
        for each in filters:
            before, after = (_own(each, f"{when}_{kind}") for when in ("before", "after"))
            if before is not None or after is not None:
                self._links.append((each, before, after))
        self._broken = broken

    def __bool__(self) -> bool:
        return bool(self._links)

    def filters(self) -> Iterator[Filter]:
        """The filters that take part."""
        return (each for each, _, _ in self._links)

    def steps(self, event: Event, act: Callable[[], object]) -> Iterator[float]:
        """Take ``event`` through the filters, to ``act``, and back. Yields the seconds to wait before it goes on.

        Raises what ``act`` raises, when all filters have seen it.
        """
        passed = 0
        for each, before, _ in self._links:
            if before is not None:
                tell(each, before, event, self._broken)
                if event.pause and (pause := self._pause(each, event)):
                    yield pause
                if event.over:
                    break
            passed += 1
        else:
            _act(event, act)
        for each, _, after in reversed(self._links[:passed]):
            if after is not None:
                tell(each, after, event, self._broken)
                if event.pause and (pause := self._pause(each, event)):
                    yield pause
        if event.error is not None:
            raise event.error

    def run(self, event: Event, act: Callable[[], object]) -> None:
        """As :meth:`steps`, without a wait: for events that something waits for, and for filters that never delay."""
        passed = 0
        for each, before, _ in self._links:
            if before is not None:
                tell(each, before, event, self._broken)
                if event.pause:
                    self._pause(each, event)
                if event.over:
                    break
            passed += 1
        else:
            _act(event, act)
        for each, _, after in reversed(self._links[:passed]):
            if after is not None:
                tell(each, after, event, self._broken)
                if event.pause:
                    self._pause(each, event)
        if event.error is not None:
            raise event.error

    def _pause(self, each: Filter, event: Event) -> float:
        """The pause that a filter wants; it is taken. A filter that has not said that it delays events is taken out."""
        pause, event.pause = event.pause, 0.0
        if pause and not each.delays:
            self._broken(each, RuntimeError("it delays an event, so its class must say delays = True"))
            return 0.0
        return pause


def _act(event: Event, act: Callable[[], object]) -> None:
    """Let the model have the event, as often as the filters want."""
    try:
        for _ in range(event.times):
            act()
    except Exception as error:  # noqa: BLE001 it is raised again when all filters have seen it
        event.error = error


def tell(each: Filter, method: Method, event: Event, broken: Broken) -> None:
    """Call a method of a filter that is still in. If it raises, ``broken`` is told, unless the filter is strict."""
    if each._stack is None:
        return  # it was taken out while the event waited
    if each.strict:
        method(event)
        return
    try:
        method(event)
    except (Exception, SystemExit) as error:  # noqa: BLE001 no error of a filter may end the worker
        broken(each, error)


def _own(each: Filter, name: str) -> Method | None:
    """The method ``name``, if the filter overrides it, and wants it."""
    method: Method = getattr(each, name)
    if getattr(method, "__func__", None) is getattr(Filter, name):
        return None
    return method if each.wants(name) else None


def listeners(filters: Iterable[Filter], name: str) -> list[tuple[Filter, Method]]:
    """The filters that override the method ``name``, which only looks."""
    return [(each, method) for each in filters if (method := _own(each, name)) is not None]
