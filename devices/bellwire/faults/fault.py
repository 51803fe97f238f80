"""Fault: a filter that lets the hardware fail at the events that its schedule chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from bellwire.errors import GuestError
from bellwire.faults.schedule import KEYS, Schedule, Trigger
from bellwire.filters import Argument, Filter


class Fault(Filter):
    """A fault. A subclass overrides the methods of the events that it can strike, and asks :meth:`strikes` in them::

        class LostWrite(Fault, name="lost-write"):
            '''A write never arrives.'''

            driver = "Reads back what has to be set before it goes on."

            def before_write(self, write: Write) -> None:
                if self.strikes("the write of %s is lost", write.place.name):
                    write.drop()

    It has the arguments of a schedule (:data:`bellwire.faults.schedule.KEYS`) besides its own. A device names the
    faults that it alone has in its attribute ``faults``.
    """

    driver: ClassVar[str] = ""
    """What a good driver does about it."""

    scenario = Argument("", help="the scenario that it belongs to: bellwire fault --stop takes all of one out")

    schedule: Schedule
    trigger: Trigger

    def __init_subclass__(cls, *, name: str | None = None, **keywords: Any) -> None:
        super().__init_subclass__(name=name, **keywords)
        cls.arguments_of = {**cls.arguments_of, **KEYS}

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.schedule = Schedule.of(self.arguments)

    def start(self) -> None:
        """Open the schedule's window. An OptionError if the device lacks a register that an argument names."""
        when = self.schedule.when
        self.trigger = Trigger(self.schedule, self, when.bind(self.device) if when else None, self.turned)
        self.trigger.start()

    def stop(self) -> None:
        """Close the window for ever."""
        self.trigger.stop()

    def turned(self, on: bool) -> None:
        """The window of time has opened or closed."""

    def strikes(self, what: str, *arguments: object) -> bool:
        """An event happens that it could strike: whether it does. ``what`` is logged then, at a limited rate."""
        if not self.trigger.strikes():
            return False
        self.device.core.tally.faults += 1
        self.tell(what, *arguments)
        return True

    def tell(self, what: str, *arguments: object) -> None:
        """Log what the fault does, at a limited rate."""
        self.device.warn(f"fault {self.name}: {what}", *arguments)

    def catch_up(self, work: Callable[[], object]) -> None:
        """Do what has been held back. A GuestError is the guest's mistake, and is logged: the fault goes on."""
        try:
            work()
        except GuestError as error:
            self.device.warn("%s", error)

    def report(self) -> dict[str, Any]:
        """How many events it has struck, and how many its schedule has counted."""
        return {"struck": self.trigger.struck, "seen": self.trigger.seen}


class LastingFault(Fault):
    """A fault that goes on for a time: a device that hangs, or that is gone.

    It begins when the window of its schedule opens; if the schedule has ``at``, ``every``, ``p`` or ``when``, at the
    event that these choose. It goes on ``for`` as long as the schedule says, each time anew, or until it is taken out.
    A subclass overrides :meth:`begin` and :meth:`end`, and asks :meth:`holds` at each event.
    """

    active = False
    """Whether it goes on now."""

    def start(self) -> None:
        """Begin, or wait for the event at which it begins."""
        self._lasts = self.schedule.lasts
        if self.schedule.by_event:
            self.schedule = dataclasses.replace(self.schedule, lasts=0.0)
        super().start()

    def stop(self) -> None:
        """End it: the hardware works again."""
        super().stop()
        self._end()

    def turned(self, on: bool) -> None:
        """Begin or end with the window of time."""
        if not self.schedule.by_event:
            if on:
                self.trigger.struck += 1
                self._begin()
            else:
                self._end()

    def holds(self) -> bool:
        """An event happens: whether the fault goes on. The event may be the one at which it begins."""
        if not self.active and self.schedule.by_event and self.trigger.strikes():
            self._begin()
            if self._lasts:
                self.after(self._lasts, self._end)
        return self.active

    def begin(self) -> None:
        """The fault begins."""

    def end(self) -> None:
        """The fault is over: what it has held back goes on."""

    def _begin(self) -> None:
        self.active = True
        self.device.core.tally.faults += 1
        self.tell("begins")
        self.begin()

    def _end(self) -> None:
        if self.active:
            self.active = False
            self.tell("ends")
            self.end()
