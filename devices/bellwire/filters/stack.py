"""The stack of one device: its filters in order, and the paths that are built anew when one comes or goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bellwire.errors import BellwireError
from bellwire.filters.accesses import Accesses
from bellwire.filters.arrivals import Arrivals, Departures, Dropped
from bellwire.filters.chain import Chain, Method, listeners, tell
from bellwire.filters.events import Client, DmaRange, DmaView, Event
from bellwire.filters.filter import Filter
from bellwire.filters.outgoing import Interrupts, Methods, in_front
from bellwire.model.core import Core
from bellwire.model.host import Host, Timer
from vfio_user import DmaMap, DmaUnmap

MOST_FILTERS = 32
MOST_FAILURES = 16


class FilterError(BellwireError, ValueError):
    """A filter that cannot be put in, or that is not there."""


class Stack:
    """The filters of one device: guest -> first ... last -> model.

    Without a filter, the device's paths are those that were built with it: nothing of this module is in them. A filter
    is put in and taken out between two events, on the device's thread. The paths of the events that it has methods for
    are then built anew. ``rebuilt`` is called after that: whoever keeps a method of the core gets it again.
    """

    def __init__(self, core: Core, rebuilt: Callable[[], None] = lambda: None) -> None:
        self.core = core
        self._rebuilt = rebuilt
        self._labels: dict[str, Filter] = {}
        self._placed: list[tuple[object, str]] = []
        self._host: Host | None = None
        self.depth = 0
        """How many events and methods of the device are under way."""
        self.arrivals = Arrivals(self._timer, self._full)
        self.departures = Departures(self._timer, self._full)
        self.failures: dict[str, str] = {}
        """Filters that were taken out since they have raised, and what."""
        self._accesses = Accesses(self, core)
        self._interrupts = Interrupts(self, core)
        self._methods = Methods(self, core)
        self._remapped, self._join = core.remapped, core.join
        self._mapping: list[tuple[Filter, Method]] = []
        self._clients: list[tuple[Filter, Method]] = []
        self.viewing: list[tuple[Filter, Method]] = []
        """The filters that are told of views of guest memory."""

    def __iter__(self) -> Iterator[tuple[str, Filter]]:
        """The filters from the guest's side to the model's, each with its label: its name, or name-2."""
        return iter(self._labels.items())

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, each: Filter, place: int | None = None) -> str:
        """Put a filter in, behind the others, or at ``place``: 0 is the guest's side. Returns its label.

        A FilterError if it is in a device already, if there are too many, or if another one refuses it. What its
        ``start`` or its ``wants`` raises comes out, and the filter is not in then.
        """
        if each._stack is not None:
            raise FilterError(f"filter {each.name} is in a device already")
        if len(self._labels) >= MOST_FILTERS:
            raise FilterError(f"at most {MOST_FILTERS} filters")
        number, label = 1, each.name
        while label in self._labels:
            number += 1
            label = f"{each.name}-{number}"
        for known in self._labels.values():
            known.beside(each)
        each._stack, each.device = self, self.core.device
        try:
            each.start()
        except BaseException:
            each._stack = None
            raise
        entries = list(self._labels.items())
        last = len(entries) - (0 if each.innermost else sum(known.innermost for _, known in entries))
        entries.insert(last if place is None else min(place, last), (label, each))
        before, self._labels = self._labels, dict(entries)
        self.failures.pop(label, None)
        try:
            self._build()
        except BaseException:
            self._labels = before
            self._build()
            self._stop(each)
            raise
        return label

    def remove(self, which: Filter | str) -> Filter:
        """Take a filter out, given itself or its label. What it delays goes on now. A FilterError if there is none."""
        for label, each in self._labels.items():
            if which in (label, each):
                break
        else:
            names = ", ".join(self._labels) or "none"
            raise FilterError(f"no filter {which} in {self.core.device.name}: it has {names}")
        del self._labels[label]
        self._build()
        self._stop(each)
        return each

    def clear(self) -> None:
        """Take all filters out."""
        for _, each in reversed(list(self)):
            self.remove(each)

    def release(self) -> None:
        """Let everything go on that filters delay."""
        self.arrivals.finish()
        self.departures.finish()

    @property
    def now(self) -> float:
        """The time in seconds of the clock that timers use."""
        return float(getattr(self._real_host(), "now", time.monotonic()))

    def after(self, each: Filter, seconds: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        """Set a timer of a filter. An error of the callback takes the filter out."""

        def run() -> None:
            if each._stack is self:
                try:
                    callback(*arguments)
                except (Exception, SystemExit) as error:
                    if each.strict:
                        raise
                    self.broken(each, error)

        return self._timer(seconds, run)

    def by(self, mechanism: str, guard: Callable[..., Any]) -> Callable[..., Any]:
        """``guard`` for rings and accesses that come by ``mechanism``: the same without filters."""
        return self._accesses.by(mechanism, guard) if self._labels else guard

    def broken(self, each: Filter, error: BaseException) -> None:
        """A filter has raised: report it, and take it out."""
        label = next((label for label, known in self._labels.items() if known is each), None)
        if label is None:
            return  # it was taken out already, while an event was still on its way through it
        said = f"{type(error).__name__}: {error}"
        if len(self.failures) < MOST_FAILURES:
            self.failures[label] = said
        self.core.log.failure(("filter", each.name), error, "filter %s failed, and is taken out: %s", label, said)
        del self._labels[label]
        self._build()
        self._stop(each)

    def ended(self, error: Exception | None) -> None:
        """An event that waited has ended. Its error is raised in a callback of its own, as one of device code."""
        if error is None or isinstance(error, Dropped):
            return

        def tell() -> None:
            raise error

        self._timer(0, tell)

    # -- the paths

    def _build(self) -> None:
        """Build the paths anew, for the filters that there are now."""
        core = self.core
        while self._placed:
            delattr(*self._placed.pop())
        if self._host is not None:
            core.host, self._host = self._host, None
        if self._labels:
            self._put_in()
        core.dma.changed()
        if core.host is not None:
            core.host.regions_changed()
        self._rebuilt()

    def _put_in(self) -> None:
        core, filters = self.core, list(self._labels.values())
        hooks = self._chain("hook")
        whole = bool(hooks) or any(each.delays for each in filters)
        for part, found in (
            (core, self._accesses.methods(self._chain, whole=whole)),
            (core, self._methods.methods(hooks, self._chain("reset"))),
            (core.signals, self._interrupts.methods(self._chain("interrupt", outwards=True))),
            (core, self._news(filters)),
        ):
            for name, method in found.items():
                setattr(part, name, method)
                self._placed.append((part, name))
        host = core.host
        if host is not None and (front := in_front(self, host, self._interrupts, self._chain)) is not None:
            self._host, core.host = host, front

    def _chain(self, kind: str, *, outwards: bool = False) -> Chain:
        filters = self._labels.values()
        return Chain(reversed(filters) if outwards else filters, kind, self.broken)

    def _news(self, filters: list[Filter]) -> dict[str, Callable[..., Any]]:
        self._mapping, self._clients = listeners(filters, "dma_map"), listeners(filters, "client")
        self.viewing = listeners(filters, "dma_view")
        return {"join": self.join} | ({"remapped": self.remapped} if self._mapping else {})

    def remapped(self, change: DmaMap | DmaUnmap) -> None:
        """As :meth:`Core.remapped`."""
        self._remapped(change)
        mapped = isinstance(change, DmaMap)
        writable = isinstance(change, DmaMap) and bool(change.flags & 2)
        event = DmaRange(change.address, change.size, mapped=mapped, writable=writable)
        self._tell(self._mapping, event)

    def viewed(self, view: DmaView) -> None:
        """Device code gets a view of guest memory."""
        self._tell(self.viewing, view)

    def join(self, connected: bool) -> None:
        """As :meth:`Core.join`. What waits is dropped when a client leaves."""
        self._join(connected)
        if not connected:
            self.arrivals.clear()
            self.departures.clear()
        self._tell(self._clients, Client(connected))

    def _tell(self, listening: list[tuple[Filter, Method]], event: Event) -> None:
        for each, method in listening:
            tell(each, method, event, self.broken)

    def _stop(self, each: Filter) -> None:
        try:
            each.stop()
        except (Exception, SystemExit) as error:  # noqa: BLE001 no error of a filter may end the worker
            self.core.log.failure(("filter", each.name), error, "filter %s failed when it was taken out", each.name)
        each._stack = None
        if each.delays:
            self.release()

    def _real_host(self) -> Host:
        return self._host if self._host is not None else self.core.running("have filters that wait")

    def _timer(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return self._real_host().after(seconds, callback)

    def _full(self, dropped: bool) -> None:
        what = "are dropped: one before them is held" if dropped else "do not wait"
        self.core.log.warning(("filter", "full"), "too many events wait in filters: more %s", what)
