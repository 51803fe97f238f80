"""``bellwired``: the daemon itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bellwired.errors import CommandError
from bellwired.logs import to_stderr_or_journal
from bellwired.manager import control, metrics, notify
from bellwired.manager.manager import Manager
from bellwired.manager.places import Places

log = logging.getLogger("bellwired")
STATUS_INTERVAL = 5.0


def parser() -> argparse.ArgumentParser:
    """The daemon's flags."""
    top = argparse.ArgumentParser(
        prog="bellwired",
        description="Hosts PCI devices over vfio-user, each in a process of its own, as devices.d/*.toml say. "
        "SIGHUP reads the configuration again; SIGTERM stops everything in order.",
    )
    add_places(top)
    top.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="over what bellwired.toml says")
    return top


def add_places(parser: argparse.ArgumentParser) -> None:
    """The flags for a private instance, which the daemon and the commands share."""
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="read configuration and plugins from DIR alone")
    parser.add_argument("--runtime-dir", type=Path, metavar="DIR", help="keep the sockets in DIR")


def main(words: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    arguments = parser().parse_args(words)
    to_stderr_or_journal(arguments.log_level or "info")
    try:
        manager = Manager(Places.of(arguments.config_dir, arguments.runtime_dir))
        if not arguments.log_level:
            to_stderr_or_journal(manager.settings.daemon.log_level)
        asyncio.run(serve(manager))
    except CommandError as error:
        log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        return 1
    return 0


async def serve(manager: Manager) -> None:
    """The daemon's life."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    given = notify.listeners()
    listener = given.pop("control", None)
    manager.take_listeners(given)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(_reload(manager))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    async with (
        manager.running(),
        control.serving(manager, listener),
        metrics.serving(manager),
        _signs_of_life(manager),
    ):
        loop.add_signal_handler(signal.SIGHUP, reload)
        notify.notify(READY="1", STATUS=manager.summary)
        log.info("ready: %s", manager.summary)
        await stop.wait()
        notify.notify(STOPPING="1", STATUS="stopping")
        log.info("stopping")


async def _reload(manager: Manager) -> None:
    notify.reloading()
    try:
        await manager.reload()
    except CommandError as error:
        log.error("not reloaded: %s%s", error, f" ({error.hint})" if error.hint else "")
    notify.notify(READY="1", STATUS=manager.summary)


@contextlib.asynccontextmanager
async def _signs_of_life(manager: Manager) -> AsyncIterator[None]:
    """Status text, and the watchdog's due: only while this loop turns and the fork server answers."""
    task = asyncio.create_task(_live(manager))
    try:
        yield
    finally:
        task.cancel()


async def _live(manager: Manager) -> None:
    interval = notify.watchdog_interval()
    while True:
        if interval and await manager.nursery.ping():
            notify.notify(WATCHDOG="1", STATUS=manager.summary)
        else:
            notify.notify(STATUS=manager.summary)
        await asyncio.sleep(min(interval / 2, STATUS_INTERVAL) if interval else STATUS_INTERVAL)


if __name__ == "__main__":
    sys.exit(main())
