"""``bellwired``: the daemon itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

from bellwired import notify, terminal
from bellwired.box import groups, privileges
from bellwired.errors import CommandError
from bellwired.logs import DATE, hush_asyncvarlink, to_stderr_or_journal
from bellwired.manager import control_server
from bellwired.manager import takeover as takeovers
from bellwired.manager.fd_store import FdStore
from bellwired.manager.manager import Manager, prepare
from bellwired.manager.tasks import alongside
from bellwired.passed import listeners
from bellwired.places import Places, add_places
from bellwired.release import Version
from bellwired.settings import Daemon
from bellwired.workers import process
from bellwired.workers.launch import ForkServer, fork_server

log = logging.getLogger("bellwired")
STATUS_INTERVAL = 5.0
STATUS_PAUSE = 0.2
METRICS_AGAIN = 5.0  # seconds between two attempts to serve metrics
ALLOWANCE = 20.0  # seconds: a start's, counted from its last sign of life; a stop's, on top of the workers' timeout


def parser() -> argparse.ArgumentParser:
    """The daemon's flags."""
    top = argparse.ArgumentParser(
        prog="bellwired",
        description="Hosts PCI devices over vfio-user, each in a process of its own, as devices.d/*.toml say. "
        "SIGHUP reads the configuration again; SIGTERM stops all devices and ends.",
    )
    top.add_argument("--version", action=Version)
    add_places(top)
    top.add_argument(
        "--takeover",
        action="store_true",
        help="take the devices over, with their clients, from the daemon that runs, which ends then",
    )
    top.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="overrides bellwired.toml")
    return top


def main(words: Sequence[str] | None = None, *, early: ForkServer | None = None) -> int:
    """Run the daemon until a signal ends it. Returns the exit status: 78 (EX_CONFIG) if a restart would not help.

    ``early`` is a fork server that was started before.
    """
    with terminal.guarded():
        return _run(parser().parse_args(words), early)


def _run(arguments: argparse.Namespace, early: ForkServer | None) -> int:
    def apply(settings: Daemon) -> None:
        _log_to(arguments.log_level or settings.log_level)

    _log_to(arguments.log_level or "info")
    process.allow_many_files()
    privileges.hide_memory()
    try:
        places = Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "")
        manager = Manager(places, apply, groups.take(child=early.process.pid if early is not None else None))
        apply(manager.settings.daemon)
        prepare(manager.places.runtime)
    except CommandError as error:
        log.error("%s", error.in_words)
        return os.EX_CONFIG
    try:
        asyncio.run(Life(manager, early, takes_over=arguments.takeover).run())
    except CommandError as error:
        log.error("%s", error.in_words)
        return 1
    return 0


class Life:
    """Run from start to stop: handle signals and tell the service manager.

    ``early`` is a fork server that runs already. ``takes_over``: from a daemon that runs.
    """

    def __init__(self, manager: Manager, early: ForkServer | None = None, *, takes_over: bool = False) -> None:
        self._manager = manager
        self._early = early
        self._takes_over = takes_over
        self._stop = manager.handed_over
        self._ready = False
        self._service_manager = notify.ServiceManager()
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Start, run and stop the manager. The control API answers during all of it, except while it takes over."""
        manager = self._manager
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        given = listeners()
        listener = given.pop("control", None)
        async with contextlib.AsyncExitStack() as stack:
            if self._takes_over:
                await self._take_over(stack)
                await stack.enter_async_context(control_server.serving(manager, None))
            else:
                manager.take_over(given, FdStore(self._service_manager, given))
                await stack.enter_async_context(control_server.serving(manager, listener))
                await stack.enter_async_context(manager.running(self._early))
            await stack.enter_async_context(_metrics(manager))
            await stack.enter_async_context(alongside(self._show_life, self._show_status))
            starting = asyncio.create_task(manager.start_all())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                await starting
                self._ready = True
                self._service_manager.tell(READY="1", STATUS=manager.summary)
                log.info("ready: %s", manager.summary)
                await stopping
            patience = manager.settings.daemon.stop_timeout + ALLOWANCE
            self._service_manager.tell(STOPPING="1", STATUS="stopping", **notify.extension(patience))
            log.info("stopping")
        await starting
        if self._reloads:
            await asyncio.wait(self._reloads)
        self._service_manager.close()

    async def _take_over(self, stack: contextlib.AsyncExitStack) -> None:
        """Take everything over from the daemon that runs. It goes on if this raises."""
        manager = self._manager
        self._early = fork_server()  # it loads meanwhile
        takeover = await takeovers.take(manager, self._early.process.pid)
        store = FdStore.of(takeover.given)
        manager.take_over({}, store)
        await stack.enter_async_context(manager.running(self._early))
        await manager.start_all()
        await takeover.finish(manager, store)

    def _reload(self) -> None:
        task = asyncio.create_task(self._reload_and_say())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_and_say(self) -> None:
        self._service_manager.reloading()
        try:
            await self._manager.reload()
        except CommandError as error:
            log.error("not reloaded: %s", error.in_words)
        finally:
            if not self._stop.is_set():
                self._service_manager.tell(READY="1", STATUS=self._manager.summary)

    async def _show_life(self) -> None:
        """Send the status text, and feed the watchdog while this loop runs and the fork server answers."""
        interval = notify.watchdog_interval()
        while True:
            if interval and await self._manager.spawner.ping():
                self._service_manager.tell(WATCHDOG="1")
            if not self._stop.is_set():
                more = {} if self._ready else notify.extension(ALLOWANCE)
                self._service_manager.tell(STATUS=self._manager.summary, **more)
            await asyncio.sleep(min(interval / 2, STATUS_INTERVAL) if interval else STATUS_INTERVAL)

    async def _show_status(self) -> None:
        """Send the status text as soon as it changes, but at most five times a second."""
        told = ""
        while True:
            await self._manager.stirred.wait()
            self._manager.stirred.clear()
            if self._manager.summary != told and not self._stop.is_set():
                told = self._manager.summary
                self._service_manager.tell(STATUS=told)
            await asyncio.sleep(STATUS_PAUSE)


@contextlib.asynccontextmanager
async def _metrics(manager: Manager) -> AsyncIterator[None]:
    """Serve metrics if they are configured. The block begins after the first attempt; a failure is tried again."""
    if not manager.settings.daemon.metrics:
        yield
        return
    tried = asyncio.Event()

    async def metrics() -> None:
        try:
            from bellwired.manager import metrics  # only now import what they need, to save memory

            async with metrics.serving(manager):
                manager.troubles.pop("metrics", None)
                tried.set()
                await asyncio.Event().wait()
        except CommandError as error:
            if manager.troubles.get("metrics") != error.in_words:
                log.error("no metrics, until the next attempt: %s", error.in_words)
            manager.troubles["metrics"] = error.in_words
        finally:
            tried.set()
        await asyncio.sleep(METRICS_AGAIN)

    async with alongside(metrics):
        await tried.wait()
        yield


def _log_to(level: str) -> None:
    to_stderr_or_journal(level, clock=DATE)
    hush_asyncvarlink()


if __name__ == "__main__":
    sys.exit(main())
