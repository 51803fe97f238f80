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

    def steps(self, event: Event, act: Callable[[], object]) -> Iterator[float]:
        """Take ``event`` through the filters, to ``act``, and back. Yields the seconds to wait before it goes on.

        Raises what ``act`` raises, when all filters have seen it.
        """
        passed = 0
        for each, before, _ in self._links:
            if before is not None:
                tell(each, before, event, self._broken)
                if event.pause and self._may_wait(each, event):
                    yield event.taken()
                if event.over:
                    break
            passed += 1
        else:
            try:
                act()
            except Exception as error:  # noqa: BLE001 it is raised again below
                event.error = error
        for each, _, after in reversed(self._links[:passed]):
            if after is not None:
                tell(each, after, event, self._broken)
                if event.pause and self._may_wait(each, event):
                    yield event.taken()
        if event.error is not None:
            raise event.error

    def run(self, event: Event, act: Callable[[], object]) -> None:
        """As :meth:`steps`, without a wait: for events that something waits for."""
        for _ in self.steps(event, act):
            pass

    def _may_wait(self, each: Filter, event: Event) -> bool:
        if each.delays:
            return True
        event.pause = 0.0
        self._broken(each, RuntimeError("it delays an event, so its class must say delays = True"))
        return False


def tell(each: Filter, method: Method, event: Event, broken: Broken) -> None:
    """Call a method of a filter. If it raises, ``broken`` is told, unless the filter is strict."""
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
