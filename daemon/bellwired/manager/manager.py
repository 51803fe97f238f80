"""The manager: it owns the units, reads the configuration, and watches over the workers' health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwired.errors import CommandError
from bellwired.manager import messages, settings
from bellwired.manager.events import Hub
from bellwired.manager.nursery import Nursery
from bellwired.manager.places import Places
from bellwired.manager.settings import Device, Settings
from bellwired.manager.unit import State, Unit

log = logging.getLogger("bellwired")
AT_ONCE = 8  # devices that are started at the same time


@dataclass(slots=True)
class Reloaded:
    """What a reload has done, by the devices' names."""

    started: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Manager:
    """All devices of one instance."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.settings: Settings = settings.load(places)
        self.units: dict[str, Unit] = {}
        self.hub = Hub()
        self.nursery = Nursery(lost=lambda: None)
        self._given: dict[str, socket.socket] = {}
        self._prints: dict[str, tuple[Any, ...]] = {}
        self._turn = asyncio.Lock()

    def unit(self, name: str) -> Unit:
        """The unit called so; a CommandError names those that are there."""
        unit = self.units.get(name)
        if unit is None:
            bad = self.settings.errors.get(name)
            if bad is not None:
                raise CommandError(f"{name} cannot be used: {bad}", bad.hint)
            known = ", ".join(sorted(self.units)) or "none yet"
            raise CommandError(f"there is no device {name!r}", f"there are: {known}")
        return unit

    def take_listeners(self, given: dict[str, socket.socket]) -> None:
        """Listeners that the service manager has opened, by device name."""
        self._given = given

    def configuration(self) -> Iterator[tuple[Path, str]]:
        """The files that count, with what they say."""
        for path in settings.used(self.places):
            try:
                yield path, path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise CommandError(f"{path}: {error}") from None

    async def open(self) -> None:
        """Start the fork server and every device that starts by itself; a device that fails hurts no other."""
        self.places.runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.nursery.open()
        self._report_bad_files()
        for name in self.settings.devices:
            self._add(name)
        await self._start_all([unit for unit in self.units.values() if unit.settings.autostart])

    async def close(self) -> None:
        """Stop everything in order."""
        await asyncio.gather(*(unit.stop() for unit in self.units.values()))
        self.nursery.close()

    async def reload(self) -> Reloaded:
        """Read configuration and plugins anew, and touch only what has changed."""
        async with self._turn:
            fresh = settings.load(self.places)
            done = Reloaded(failed={name: str(error) for name, error in fresh.errors.items()})
            old, self.settings = self.settings, fresh
            self._report_bad_files()
            for name in sorted(self.units):
                if name not in fresh.devices and name not in fresh.errors:
                    await self.units.pop(name).stop()
                    done.stopped.append(name)
            for name in sorted(fresh.devices):
                await self._bring_up_to_date(name, fresh.daemon != old.daemon, done)
            summary = f"{len(done.started)} started, {len(done.restarted)} restarted, {len(done.stopped)} stopped"
            log.info("configuration read again: %s", summary, extra={"MESSAGE_ID": messages.RELOADED})
            self.hub.publish("", "reloaded", {"text": summary})
            return done

    async def watch_over(self) -> None:
        """Ping every worker, for ever."""
        while True:
            await asyncio.sleep(self.settings.daemon.ping_interval)
            await asyncio.gather(*(unit.check() for unit in list(self.units.values())))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Manager]:
        """Open for the block, watched over, and closed after it."""
        try:
            await self.open()
            watch = asyncio.create_task(self.watch_over())
            try:
                yield self
            finally:
                watch.cancel()
        finally:
            await self.close()

    @property
    def summary(self) -> str:
        """For the service manager's status line."""
        up = sum(unit.state is State.RUNNING for unit in self.units.values())
        clients = sum(unit.client is not None for unit in self.units.values())
        failed = [unit.name for unit in self.units.values() if unit.state is State.FAILED]
        text = f"{up} of {len(self.units)} devices running, {clients} with a client"
        return f"{text}; failed: {', '.join(sorted(failed))}" if failed else text

    async def _bring_up_to_date(self, name: str, daemon_changed: bool, done: Reloaded) -> None:
        device = self.settings.devices[name]
        unit = self.units.get(name)
        try:
            if unit is None:
                unit = self._add(name)
                if device.autostart:
                    await unit.start()
                    done.started.append(name)
            elif self._print(name) != self._prints[name]:
                was_up = unit.state is not State.STOPPED
                await unit.stop()
                unit = self._add(name)
                if was_up or device.autostart:
                    await unit.start()
                done.restarted.append(name)
            else:
                unit.daemon = self.settings.daemon
                done.unchanged.append(name)
        except CommandError as error:
            done.failed[name] = str(error)

    async def _start_all(self, units: list[Unit]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def start(unit: Unit) -> None:
            async with room:
                with contextlib.suppress(CommandError, TimeoutError):  # the unit has said why
                    await unit.start()

        await asyncio.gather(*map(start, units))

    def _add(self, name: str) -> Unit:
        device = self.settings.devices[name]
        path = Path(device.socket) if device.socket else self.places.socket(name)
        plugins = [str(folder) for folder in self.places.plugins]
        unit = Unit(name, device, self.settings.daemon, path, plugins, self.nursery, self._tell)
        unit.given = self._given.get(name)
        self.units[name] = unit
        self._prints[name] = self._print(name)
        return unit

    def _print(self, name: str) -> tuple[Any, ...]:
        """What a device is made of: a change of any of it is worth a restart."""
        device: Device = self.settings.devices[name]
        path, _, _ = device.device.partition(":")
        files = [Path(path)] if path.endswith(".py") else [folder / f"{path}.py" for folder in self.places.plugins]
        return device, *(_stamp(file) for file in files)

    def _report_bad_files(self) -> None:
        for name, error in self.settings.errors.items():
            fields = {"MESSAGE_ID": messages.BAD_FILE, "BELLWIRE_DEVICE": name}
            log.error("%s%s", error, f" ({error.hint})" if error.hint else "", extra=fields)

    def _tell(self, unit: Unit, kind: str, fields: dict[str, Any]) -> None:
        self.hub.publish(unit.name, kind, fields)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
