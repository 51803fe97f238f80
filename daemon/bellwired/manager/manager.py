"""The manager: it owns the units, reads the configuration, and watches the workers' health."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from bellwire.paths import PathError, check_folder, make_folders
from bellwired import messages, settings, toml_file
from bellwired.box.groups import Groups
from bellwired.errors import CommandError, SettingsError
from bellwired.find import files_for
from bellwired.manager import edits
from bellwired.manager.events import LOG, Broadcaster
from bellwired.manager.fd_store import FdStore
from bellwired.manager.life import State
from bellwired.manager.tasks import a_few_at_once, alongside
from bellwired.manager.unit import Unit
from bellwired.places import Places
from bellwired.settings import Daemon, Device, Settings
from bellwired.sources import stamp
from bellwired.workers.launch import ForkServer
from bellwired.workers.spawner import Spawner

log = logging.getLogger("bellwired")
COUNTING = 1.0  # seconds between two statistics events, while there is a listener


@dataclass(slots=True)
class Reloaded:
    """What a reload has done, by the devices' names."""

    started: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def sort(self) -> None:
        """The units by name."""
        for names in (self.started, self.restarted, self.stopped, self.unchanged):
            names.sort()
        self.failed = dict(sorted(self.failed.items()))


class Manager:
    """All devices of one instance, in control groups of ``groups``.

    ``apply`` is called when a reload has changed the daemon's own settings.
    """

    def __init__(
        self, places: Places, apply: Callable[[Daemon], None] = lambda _: None, groups: Groups | None = None
    ) -> None:
        self.places = places
        self.settings: Settings = settings.load(places)
        self.units: dict[str, Unit] = {}
        self.broadcaster = Broadcaster()
        self.spawner = Spawner(groups)
        self.troubles: dict[str, str] = {}
        """What does not work of the daemon itself, by its part. The devices are served all the same."""
        self.reloads = {"success": 0, "failure": 0}
        """Reloads by whether all files could be used."""
        good = not (self.settings.errors or self.settings.faults)
        self.last_reload = self.settings.since, good
        """When the configuration was last read, and whether all files could be used."""
        self.last_success = self.settings.since if good else 0.0
        self._apply = apply
        self._given: dict[str, socket.socket] = {}
        self._store = FdStore()
        self._prints: dict[str, tuple[Any, ...]] = {}
        self.turn = asyncio.Lock()
        """Held while devices come and go."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.stirred = asyncio.Event()
        """Set when something has happened to a device."""
        self.handed_over = asyncio.Event()
        """Set when another daemon has taken all devices over."""
        self._closing = False

    def unit(self, name: str) -> Unit:
        """The unit ``name``. Without one, a CommandError names those that exist."""
        unit = self.units.get(name)
        if unit is None:
            bad = self.settings.errors.get(name)
            if bad is not None:
                raise CommandError(f"{name} cannot be used: {bad}", bad.hint)
            near = difflib.get_close_matches(name, self.units, n=1)
            known = ", ".join(sorted(self.units)) or "none yet"
            hint = f"did you mean {near[0]}?" if near else f"there are: {known}"
            raise CommandError(f"there is no device {name!r}", hint)
        return unit

    @property
    def unusable(self) -> dict[str, SettingsError]:
        """Why there is no unit, by the names of files that cannot be used, disabled ones among them."""
        return {name: error for name, error in self.settings.errors.items() if name not in self.units}

    def take_over(self, given: dict[str, socket.socket], store: FdStore) -> None:
        """Use listeners that the service manager has opened, by device name, and what it keeps for the next daemon."""
        self._given, self._store = given, store

    @property
    def lends(self) -> str:
        """Why it cannot hand over to another daemon; empty if it can."""
        return "the service manager keeps what it holds: restart its unit" if self._store.present else ""

    def configuration(self) -> Iterator[tuple[Path, str]]:
        """The files in effect, with their contents."""
        for path in settings.used(self.places):
            yield path, toml_file.text(path)

    @contextlib.asynccontextmanager
    async def running(self, early: ForkServer | None = None) -> AsyncIterator[Manager]:
        """For the block, the fork server runs and the units exist, not yet started. They are stopped after it.

        ``early`` is a fork server that runs already.
        """
        self.spawner.open(early)
        try:
            self._report_bad_files()
            for name in self.settings.devices:
                self._add(name)
            for name in self._given.keys() - self.units.keys():
                log.warning("a socket was passed for %s, which is no device: it is left alone", name)
            for name in self._store.found - self.units.keys() - self.settings.errors.keys():
                log.warning("%s has no file any more: the client that the daemon before has left is let go", name)
                self._store.forget(name)
            async with alongside(self._watch_over, self.count):
                yield self
        finally:
            await self._close()

    async def start_all(self) -> None:
        """Start every device with ``autostart``. A device that fails has logged why, and does not affect the others."""

        async def start(unit: Unit) -> None:
            with contextlib.suppress(CommandError):
                await unit.start()

        await a_few_at_once(start(unit) for unit in list(self.units.values()) if unit.settings.starts or unit.awaited)

    async def reload(self) -> Reloaded:
        """Read configuration and plugins again. Restart only devices that have changed."""
        async with self.turn:
            fresh = settings.load(self.places)
            if fresh.faults:  # none of a broken file counts: the daemon goes on as it was
                fresh = replace(fresh, daemon=self.settings.daemon)
            old, self.settings = self.settings, fresh
            done = Reloaded(failed={name: error.in_words for name, error in self._bad_files()})
            self._report_bad_files()
            if fresh.faults:
                done.failed[settings.DAEMON] = self.troubles[settings.DAEMON]
            self._take_daemon(old.daemon, fresh.daemon)
            gone = [name for name in self.units if name not in fresh.devices and name not in fresh.errors]
            await a_few_at_once(self._remove(name, done) for name in gone)
            await a_few_at_once(self._disable(name, done) for name in fresh.disabled & self.units.keys())
            await a_few_at_once(self._bring_up_to_date(name, done) for name in fresh.devices)
            done.sort()
            self._count_reload(not done.failed)
            summary = f"{len(done.started)} started, {len(done.restarted)} restarted, {len(done.stopped)} stopped"
            log.info("configuration read again: %s", summary, extra={"MESSAGE_ID": messages.RELOADED})
            self.broadcaster.publish("", "reloaded", {"text": summary})
            return done

    async def move(self, name: str) -> None:
        """Have another worker of a device go on with its client and state. Raises a CommandError."""
        await edits.move(self.unit(name), self.spawner)

    @property
    def summary(self) -> str:
        """For the service manager's status line."""
        up = sum(unit.state is State.RUNNING for unit in self.units.values())
        clients = sum(unit.client is not None for unit in self.units.values())
        unusable = self.unusable
        bad = [name for name, _ in self._bad_files() if name in unusable]
        failed = [*bad, *(unit.name for unit in self.units.values() if unit.state is State.FAILED)]
        text = f"{up} of {len(self.units) + len(unusable)} devices running, {clients} with a client"
        text = f"{text}; failed: {', '.join(sorted(failed))}" if failed else text
        return "; ".join([text, *(f"trouble with {part}" for part in sorted(self.troubles))])

    # -- health

    async def _watch_over(self) -> None:
        """Ping every worker, for ever. A slow worker does not delay the pings of others."""
        busy: dict[Unit, asyncio.Task[None]] = {}
        try:
            while True:
                if await self._changes_within(self.settings.daemon.ping_interval):
                    continue
                busy = {unit: check for unit, check in busy.items() if not check.done()}
                for unit in self.units.values():
                    if unit not in busy:
                        busy[unit] = asyncio.create_task(unit.check())
        finally:
            for check in busy.values():
                check.cancel()

    async def _changes_within(self, seconds: float) -> bool:
        """Sleep. True as soon as the daemon's settings change."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._changed.wait()
        return False

    async def count(self) -> None:
        """While there is a listener, publish the devices' counters."""
        last: dict[Unit, dict[str, int]] = {}
        while True:
            if not self.broadcaster.heard.is_set():
                last.clear()
                await self.broadcaster.heard.wait()
            units = [unit for unit in self.units.values() if unit.state is State.RUNNING]
            answers = await asyncio.gather(*(unit.ask("statistics") for unit in units), return_exceptions=True)
            for unit, answer in zip(units, answers, strict=True):
                if isinstance(answer, BaseException):
                    continue  # the worker has just ended, or hangs: other events say so
                before = last.get(unit, answer)
                news = {key: value - before.get(key, 0) for key, value in answer.items() if value > before.get(key, 0)}
                if news:
                    self.broadcaster.publish(unit.name, "statistics", news)
            pairs = zip(units, answers, strict=True)
            last = {unit: answer for unit, answer in pairs if not isinstance(answer, BaseException)}
            await asyncio.sleep(COUNTING)

    # -- changes

    async def _close(self) -> None:
        """Stop all units: last those with a client that goes on, since it waits for the next daemon from then on."""
        self._closing = True
        going_on = [unit for unit in self.units.values() if unit.goes_on]
        await self._retire([unit for unit in self.units.values() if unit not in going_on])
        await self._retire(going_on)
        await self.spawner.close()
        for listener in self._given.values():
            listener.close()

    async def _retire(self, units: list[Unit]) -> None:
        """Stop units for good. A failure of one does not keep the others from being stopped."""
        ends = await asyncio.gather(*(unit.retire(keep=True) for unit in units), return_exceptions=True)
        for unit, end in zip(units, ends, strict=True):
            if isinstance(end, Exception):
                log.error("%s: not stopped in order", unit.name, exc_info=end)

    async def _remove(self, name: str, done: Reloaded) -> None:
        await self.units.pop(name).retire()
        del self._prints[name]
        done.stopped.append(name)

    async def _disable(self, name: str, done: Reloaded) -> None:
        """Disable a device whose files cannot be used otherwise."""
        unit = self.units[name]
        if unit.settings.enabled:
            await unit.change(msgspec.structs.replace(unit.settings, enabled=False), unit.path, unit.folder)
            self._prints[name] = ()  # whatever its files become, that is a change
            done.stopped.append(name)

    async def _bring_up_to_date(self, name: str, done: Reloaded) -> None:
        device = self.settings.devices[name]
        unit = self.units.get(name)
        try:
            if unit is None:
                unit = self._add(name)
                if device.starts:
                    done.started.append(name)
                    await unit.start()
            elif (fresh := self._print(name)) != self._prints[name] or unit.edited():
                folder, unit.kept, unit.kept_code = self._folder(name), "", ""
                if unit.state is State.RUNNING and device.enabled:
                    await edits.try_out(unit, self.spawner, device, folder)
                if unit.client is not None and (device, folder) == (unit.settings, unit.folder):
                    await edits.exchange(unit)
                    self._prints[name] = fresh
                    done.restarted.append(name)
                    return
                self._prints[name] = fresh
                enabled = device.enabled, unit.settings.enabled
                {(True, False): done.started, (False, True): done.stopped}.get(enabled, done.restarted).append(name)
                await unit.change(device, self._path(name), folder)
            else:
                unit.kept = unit.kept_code = ""
                done.unchanged.append(name)
        except CommandError as error:
            done.failed[name] = str(error)
            log.error("%s", error, extra={"MESSAGE_ID": messages.BAD_FILE, "BELLWIRE_DEVICE": name})
            for names in (done.started, done.restarted, done.stopped):
                if name in names:
                    names.remove(name)

    def _add(self, name: str) -> Unit:
        if self._closing:
            raise CommandError("the daemon is stopping")
        device = self.settings.devices[name]
        plugins = [str(folder) for folder in self.places.plugins]
        folder, daemon = self._folder(name), self.settings.daemon
        unit = Unit(name, device, daemon, self._path(name), folder, plugins, self.spawner, self._tell)
        unit.socket.given = self._given.get(name)
        unit.take_up(self._store)
        self.units[name] = unit
        self._prints[name] = self._print(name)
        return unit

    def _take_daemon(self, old: Daemon, fresh: Daemon) -> None:
        for unit in self.units.values():
            unit.daemon = fresh
        if fresh != old:
            self._changed.set()
            self._apply(fresh)
        for key in ("control_group", "metrics", "metrics_mode", "metrics_group"):
            if getattr(old, key) != getattr(fresh, key):
                log.warning("a change of %s counts from the daemon's next start on", key.replace("_", "-"))

    def _path(self, name: str) -> Path:
        configured = self.settings.devices[name].socket
        return self.places.runtime / configured if configured else self.places.socket(name)

    def _folder(self, name: str) -> Path:
        return self.settings.sources[name].parent

    def _print(self, name: str) -> tuple[Any, ...]:
        """Everything that a device is made from. If any of it changes, the device is restarted."""
        device: Device = self.settings.devices[name]
        files = files_for(device.device, self.places.plugins)
        return device, self._folder(name), *(stamp(file) for file in files)

    def _bad_files(self) -> Iterator[tuple[str, SettingsError]]:
        """The devices whose files cannot be used, without those that are disabled."""
        yield from ((name, why) for name, why in self.settings.errors.items() if name not in self.settings.disabled)

    def _count_reload(self, good: bool) -> None:
        self.reloads["success" if good else "failure"] += 1
        self.last_reload = self.settings.since, good
        if good:
            self.last_success = self.settings.since

    def _report_bad_files(self) -> None:
        for fault in self.settings.faults:
            log.error("%s", fault.in_words, extra={"MESSAGE_ID": messages.BAD_FILE})
        self.troubles.pop(settings.DAEMON, None)
        if self.settings.faults:
            self.troubles[settings.DAEMON] = "; ".join(fault.in_words for fault in self.settings.faults)
        for name, error in self._bad_files():
            fields = {"MESSAGE_ID": messages.BAD_FILE, "BELLWIRE_DEVICE": name}
            log.error("%s", error.in_words, extra=fields)

    def _tell(self, unit: Unit, kind: str, fields: dict[str, Any]) -> None:
        if kind != LOG:
            self.stirred.set()
        self.broadcaster.publish(unit.name, kind, fields)


def prepare(folder: Path) -> None:
    """Create the runtime folder. Raises a CommandError if another user could put sockets into it."""
    try:
        make_folders(folder, 0o755)
        check_folder(folder)
    except PathError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", f"{error.hint}, or use --runtime-dir") from None
    except OSError as error:
        raise CommandError(f"{folder}: cannot be the runtime folder: {error.strerror}") from None
