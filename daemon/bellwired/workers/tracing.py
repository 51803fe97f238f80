"""Traces of a device that runs: put in and taken out by the manager, and read by others from the trace's event ring."""

from __future__ import annotations

from typing import NamedTuple

from bellwire.filters import Filter, Stack
from bellwire.filters.builtin.trace import Trace
from bellwired.errors import CommandError

MOST = 8
"""Traces that callers may have at the same time: each one costs the device time."""


class Lent(NamedTuple):
    """An answer to the manager that comes with a descriptor, which stays the worker's."""

    value: str
    fd: int


class Tracing:
    """The traces of one device. All methods run on its thread."""

    def __init__(self, filters: Stack) -> None:
        self._filters = filters
        self._begun: dict[str, Filter] = {}

    def begin(self, only: str, without: str, rate: str) -> Lent:
        """Begin a trace: its label, and its event ring. A CommandError if there are too many already."""
        self._begun = {label: each for label, each in self._filters if self._begun.get(label) is each}
        if len(self._begun) >= MOST:
            raise CommandError(f"{MOST} traces of it run already")
        trace = Trace(only=only, without=without, rate=int(rate), log=False)
        label = self._filters.add(trace)
        self._begun[label] = trace
        return Lent(label, trace.ring.fd)

    def end(self, label: str) -> None:
        """End a trace that :meth:`begin` has begun. It may have ended by itself."""
        trace = self._begun.pop(label, None)
        if trace is not None and (label, trace) in self._filters:
            self._filters.remove(trace)

    def events(self) -> Lent:
        """The event ring of the first trace that the device has. A CommandError if it has none."""
        for label, each in self._filters:
            if isinstance(each, Trace):
                return Lent(label, each.ring.fd)
        raise CommandError("it has no filter trace: bellwire trace without --last begins one")
