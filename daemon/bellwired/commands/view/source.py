"""Where the view gets its readings: a daemon, or the ``bellwire run`` that serves a device, by the control socket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bellwired.commands.control_client import Instance, all_devices, call, method, stream
from bellwired.commands.trace import Prints, follow, opened
from bellwired.errors import CommandError


@dataclass(frozen=True, slots=True)
class Reading:
    """What the view shows of one device at one moment; the fields are the control API's."""

    device: dict[str, Any]
    registers: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    filters: list[dict[str, Any]] = field(default_factory=list)


class Source:
    """The devices of ``instance``. Each method asks, and waits for the answer: call it from a thread of its own.

    Raises a CommandError that says why there is no answer.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def devices(self) -> list[dict[str, Any]]:
        """All devices, in order of their names."""
        return all_devices(self._instance)

    def read(self, name: str) -> Reading:
        """One device. One that does not run has neither registers nor memory."""
        device = method(self._instance, "Describe", name=name)["device"]
        log: list[dict[str, Any]] = []
        stream(self._instance, lambda reply: log.extend(reply["lines"]), "Log", endless=False, name=name, follow=False)
        if device["state"] != "running":
            return Reading(device, log=log)
        return Reading(
            device,
            method(self._instance, "Registers", name=name)["registers"],
            method(self._instance, "Maps", name=name)["maps"],
            log,
            method(self._instance, "Filters", name=name)["filters"],
        )

    def trace(self, name: str, printer: Prints) -> None:
        """Trace a device until ``printer`` raises, or the device ends."""

        async def work(daemon: Any) -> None:
            replies = daemon.Trace(name=name, begin=True)
            with opened(await anext(replies)) as reader:
                await follow(reader, printer, replies)

        call(self._instance, work, name, endless=True)

    def add_filter(self, name: str, text: str) -> None:
        """Put a filter in, as ``delay:read=2ms``."""
        method(self._instance, "AddFilter", name=name, filter=text)

    def remove_filter(self, name: str, label: str) -> None:
        """Take a filter out."""
        method(self._instance, "RemoveFilter", name=name, label=label)

    def poke(self, name: str, text: str, *, guest: bool) -> None:
        """Do what ``bellwire poke`` does with one TARGET."""
        target, equals, value = text.strip().partition("=")
        if not target or (equals and not value):
            raise CommandError(f"{text!r}: expected REGISTER=VALUE, DOORBELL or DOORBELL=VALUE")
        method(self._instance, "Poke", name=name, target=target, value=value or None, guest=guest)

    def interrupt(self, name: str, text: str) -> None:
        """Raise the interrupt of which ``text`` has the vector."""
        if not text.strip().isdecimal():
            raise CommandError(f"{text!r}: expected the number of a vector")
        method(self._instance, "Interrupt", name=name, vector=int(text))

    def reset(self, name: str) -> None:
        """Reset a device, as its guest could."""
        method(self._instance, "Reset", name=name)
