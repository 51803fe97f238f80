"""The control API: varlink on the control socket, for Bellwire's commands and for other programs.

Root and the user that the daemon runs as may do everything. Members of ``control-group`` may look.
"""

import asyncio
import contextlib
import json
import math
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from asyncvarlink import (
    FileDescriptor,
    GenericVarlinkErrorReply,
    LastResult,
    VarlinkInterface,
    varlinkmethod,
)
from asyncvarlink.serviceinterface import PermissionDenied

from bellwire.capture.files import STOPPED
from bellwired.errors import CommandError
from bellwired.manager.answers import (
    INTERFACE,
    Captured,
    Failed,
    File,
    FilterInPlace,
    GuestMemory,
    Happening,
    LogLine,
    Outcome,
)
from bellwired.manager.control_connection import ControlConnection
from bellwired.manager.describe import About, Description, RegisterValue, describe, describe_unusable
from bellwired.manager.events import LOG, Event, Subscription
from bellwired.manager.manager import Manager
from bellwired.manager.takeover import give
from bellwired.release import release
from bellwired.workers.captures import MOST_FILES

LAST = "stopping"
"""The kind of the stream's last event."""
CAPTURE_NEWS = 0.25  # seconds between two replies about a capture
STILL_THERE = 1.0  # seconds between two checks whether an idle listener has hung up
NOBODY = GenericVarlinkErrorReply(f"{INTERFACE}.HungUp")
"""Ends the stream of a listener who has gone, whom it does not reach."""


class Control(VarlinkInterface, name=INTERFACE):
    """The interface org.bellwire.Manager: lists, describes and controls devices."""

    errors = (Failed,)

    def __init__(self, manager: Manager, caller: "ControlConnection", *, may_look: bool, may_change: bool) -> None:
        self._manager = manager
        self._caller = caller
        self._may_look = may_look
        self._may_change = may_change

    @varlinkmethod(return_parameter="daemon")
    async def About(self) -> About:
        """The daemon itself, and what does not work of it."""
        with self._looking():
            manager = self._manager
            return About(
                version=release(),
                pid=os.getpid(),
                uid=os.geteuid(),
                summary=manager.summary,
                troubles=manager.troubles,
            )

    @varlinkmethod(return_parameter="devices")
    async def List(self, *, statistics: bool | None = None) -> list[Description]:
        """Every device of the configuration. One whose file cannot be used is in the state "failed" or "disabled".

        With ``statistics`` each has its counters: the manager asks its worker for them.
        """
        with self._looking():
            manager = self._manager
            units = list(manager.units.values())
            bad = manager.settings.errors
            ways = [describe(unit, bad.get(unit.name), statistics=bool(statistics), recent=False) for unit in units]
            found = list(await asyncio.gather(*ways))
            read = manager.settings
            found += [
                describe_unusable(name, why, read.since, enabled=name not in read.disabled)
                for name, why in manager.unusable.items()
            ]
            return sorted(found, key=lambda each: each["name"])

    @varlinkmethod(return_parameter="device")
    async def Describe(self, *, name: str) -> Description:
        """One device, with its statistics, its client and its recent events."""
        with self._looking():
            return await describe(self._manager.unit(name), self._manager.settings.errors.get(name))

    @varlinkmethod
    async def Start(self, *, name: str) -> None:
        """Start a device; returns when it accepts clients."""
        with self._changing():
            await self._manager.unit(name).start()

    @varlinkmethod
    async def Stop(self, *, name: str) -> None:
        """Stop a device in order, and remove its socket."""
        with self._changing():
            await self._manager.unit(name).stop()

    @varlinkmethod
    async def Restart(self, *, name: str) -> None:
        """Give a device a new worker; clients that connect meanwhile wait."""
        with self._changing():
            await self._manager.unit(name).restart()

    @varlinkmethod
    async def Move(self, *, name: str) -> None:
        """Give a device a new worker, which goes on with its client and its state. The guest sees a pause."""
        with self._changing():
            await self._manager.move(name)

    @varlinkmethod
    async def Reset(self, *, name: str) -> None:
        """Reset a device, as the guest's DEVICE_RESET would."""
        with self._changing():
            await self._manager.unit(name).ask("reset")

    @varlinkmethod
    async def Disconnect(self, *, name: str) -> None:
        """Close the connection of a device's client; the next client may connect."""
        with self._changing():
            await self._manager.unit(name).ask("disconnect")

    @varlinkmethod
    async def Set(self, *, name: str, option: str, value: str) -> None:
        """Change an option of a running device, until the device is started again."""
        with self._changing():
            await self._manager.unit(name).set(option, value)

    @varlinkmethod
    async def Poke(self, *, name: str, target: str, value: str | None = None, guest: bool | None = None) -> None:
        """Store a value in a register, as the device would; or write it, or ring a doorbell, as a ``guest`` would.

        ``value`` is a number, or names of the register's flags joined by "|". A doorbell may do without.
        """
        with self._changing():
            by = "guest" if guest else "device"
            await self._manager.unit(name).ask("poke", target=target, value=value or "", by=by)

    @varlinkmethod
    async def Interrupt(self, *, name: str, vector: int) -> None:
        """Raise an interrupt of a device: of MSI-X or MSI, whichever the guest uses, else pulse the INTx line."""
        with self._changing():
            await self._manager.unit(name).ask("interrupt", vector=str(vector))

    @varlinkmethod(return_parameter="filters")
    async def Filters(self, *, name: str) -> list[FilterInPlace]:
        """The filters between a guest and a running device, from the guest's side to the device's."""
        with self._looking():
            return _in_place(await self._manager.unit(name).filter("list"))

    @varlinkmethod(return_parameter="filters")
    async def AddFilter(self, *, name: str, filter: str, place: int | None = None) -> list[FilterInPlace]:
        """Put a filter in, as "delay:read=2ms": behind the others, or at ``place``; 0 is the guest's side."""
        with self._changing():
            return _in_place(await self._manager.unit(name).filter("add", filter, "" if place is None else str(place)))

    @varlinkmethod(return_parameter="filters")
    async def RemoveFilter(self, *, name: str, label: str) -> list[FilterInPlace]:
        """Take a filter out."""
        with self._changing():
            return _in_place(await self._manager.unit(name).filter("remove", label))

    @varlinkmethod(return_parameter="outcome")
    async def Reload(self) -> Outcome:
        """Read configuration and plugins again; only what has changed is touched."""
        with self._changing():
            done = await self._manager.reload()
            return Outcome(
                started=done.started,
                restarted=done.restarted,
                stopped=done.stopped,
                unchanged=done.unchanged,
                failed=done.failed,
            )

    @varlinkmethod
    async def HandOver(self, *, socket: str) -> None:
        """Hand all devices over to another daemon of the same user, which listens at ``socket``, and end."""
        with self._changing():
            task = asyncio.create_task(give(self._manager, Path(socket)))
            self._manager.tasks.add(task)
            task.add_done_callback(self._manager.tasks.discard)

    @varlinkmethod(return_parameter="registers")
    async def Registers(self, *, name: str) -> list[RegisterValue]:
        """A device's registers, decoded; reading them so has no side effects."""
        with self._looking():
            return list(await self._manager.unit(name).ask("registers"))

    @varlinkmethod(return_parameter="maps")
    async def Maps(self, *, name: str) -> list[GuestMemory]:
        """The ranges of guest memory that a device may use; the first 256 of them, in order of address."""
        with self._looking():
            return list(await self._manager.unit(name).ask("maps"))

    @varlinkmethod(return_parameter="statistics")
    async def Statistics(self, *, name: str) -> dict[str, int]:
        """A device's counters since its worker was started."""
        with self._looking():
            return dict(await self._manager.unit(name).ask("statistics"))

    @varlinkmethod(return_parameter="capture", delay_generator=False)
    async def Capture(
        self, *, name: str, form: str, files: list[FileDescriptor], limit: int, seconds: float | None = None
    ) -> AsyncIterator[Captured]:
        """Write what a device and its client do to ``files`` in turn, each of at most ``limit`` bytes.

        The files are open for writing, and come as descriptors beside the call. There are replies as it goes on. The
        capture ends after ``seconds``, when it is stopped, when its files are full, and when the caller hangs up.
        """
        with self._changing():
            unit, loop = self._manager.unit(name), asyncio.get_running_loop()
            end = loop.time() + seconds if seconds is not None else math.inf
            fds = [each.fileno() for each in files[: MOST_FILES + 1]]
            number, why = str(await unit.ask("capture", fds=fds, form=form, limit=str(limit))), STOPPED
            try:
                while True:
                    figures = _captured(number, await unit.ask("captured", number=number))
                    if figures["ended"]:
                        break
                    if loop.time() >= end:
                        why = "its time is over"
                        break
                    if self._caller.has_hung_up():
                        raise NOBODY
                    yield figures
                    await asyncio.sleep(max(0.0, min(CAPTURE_NEWS, end - loop.time())))
            finally:
                stopped = None
                with contextlib.suppress(CommandError):  # its worker has ended
                    stopped = _captured(number, await unit.ask("capture-stop", number=number, why=why))
            if stopped is None:
                raise CommandError(f"{name}: the worker that wrote the capture has ended")
            raise LastResult(stopped)

    @varlinkmethod
    async def StopCapture(self, *, name: str, number: int) -> None:
        """End a capture of a device; :meth:`Capture` sends its last reply."""
        with self._changing():
            await self._manager.unit(name).ask("capture-end", number=str(number))

    @varlinkmethod(return_parameter="folders")
    async def Folders(self) -> list[str]:
        """The folders that are searched for configuration, the overriding one first."""
        with self._looking():
            return [str(folder) for folder in self._manager.places.config]

    @varlinkmethod(return_parameter="files")
    async def Configuration(self) -> list[File]:
        """The configuration files in effect, in order."""
        with self._looking():
            return [File(path=str(path), content=text) for path, text in self._manager.configuration()]

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Monitor(self, *, name: str | None = None) -> AsyncIterator[Happening]:
        """Events as they happen, of one device or all, until the caller hangs up."""
        with self._looking(), self._manager.broadcaster.listening(name) as subscription:
            async for event in self._heard(subscription):
                fields = {key: str(value) for key, value in event.fields.items()}
                happening = Happening(time=event.time, device=event.device, kind=event.kind, fields=fields)
                if event.kind == LAST:
                    raise LastResult(happening)
                yield happening

    @varlinkmethod(return_parameter="events", delay_generator=False)
    async def Trace(
        self,
        *,
        name: str,
        only: str | None = None,
        without: str | None = None,
        rate: int | None = None,
        begin: bool | None = None,
        ended: bool | None = None,
    ) -> AsyncIterator[FileDescriptor | None]:
        """The event ring of a device's trace: a memory file that the caller reads by itself.

        With ``begin`` a trace of the caller's own begins, of the events that ``only`` and ``without`` select, at most
        ``rate`` a second. It ends when the caller hangs up or the device's process ends. Otherwise the ring is that of
        the filter ``trace`` which the device has; with ``ended`` that of the last worker which has ended.
        """
        with self._changing() if begin else self._looking():
            unit = self._manager.unit(name)
            if not begin:
                ring = unit.rings.last() if ended else (await unit.worker.borrow("events"))[1]
                raise LastResult(FileDescriptor(ring, True))
            pid = unit.pid
            with self._manager.broadcaster.listening(name) as subscription:
                label, ring = await unit.worker.borrow(
                    "trace", only=only or "", without=without or "", rate=str(rate or 0)
                )
                try:
                    yield FileDescriptor(ring, True)
                    async for event in self._heard(subscription):
                        if event.kind == LAST or unit.pid != pid:
                            raise LastResult(None)
                finally:
                    with contextlib.suppress(CommandError):
                        await unit.ask("untrace", label=label)

    @varlinkmethod(return_parameter="lines", delay_generator=False)
    async def Log(self, *, name: str, follow: bool | None = None) -> AsyncIterator[list[LogLine]]:
        """A device's recent log lines and, with ``follow``, each later line until the caller hangs up."""
        with self._looking(), self._manager.broadcaster.listening(name, log=True) as subscription:
            lines = [
                LogLine(time=line.time, level=line.level, text=line.text) for line in self._manager.unit(name).lines
            ]
            if not follow:
                raise LastResult(lines)
            yield lines
            async for event in self._heard(subscription):
                if event.kind == LOG:
                    yield [LogLine(**event.fields)]  # type: ignore[typeddict-item] # a Line's fields
                elif event.kind == LAST:
                    raise LastResult([])

    async def _heard(self, subscription: Subscription) -> AsyncIterator[Event]:
        """The events of ``subscription``, until the caller has hung up."""
        while True:
            try:
                async with asyncio.timeout(STILL_THERE):
                    event = await subscription.get()
            except TimeoutError:
                event = None
            if self._caller.has_hung_up():
                raise NOBODY
            if event is not None:
                yield event

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        if not self._may_look:
            raise PermissionDenied
        with _failing():
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if not self._may_change:
            raise PermissionDenied
        with _failing():
            yield


def _in_place(found: list[dict[str, Any]]) -> list[FilterInPlace]:
    """What a worker says of its filters."""
    return [
        FilterInPlace(
            label=str(each["label"]),
            name=str(each["name"]),
            arguments={key: str(value) for key, value in each["arguments"].items()},
            report=json.dumps(each["report"], default=str),
        )
        for each in found
    ]


def _captured(number: str, figures: dict[str, Any]) -> Captured:
    return Captured(
        number=int(number),
        messages=figures["messages"],
        events=figures["events"],
        bytes=figures["bytes"],
        ended=figures["ended"],
    )


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Turn a CommandError into the API's own error."""
    try:
        yield
    except CommandError as error:
        raise Failed(message=str(error), hint=error.hint) from None
