"""What the manager asks for: a worker for a device's settings, and a listener."""

from __future__ import annotations

from pathlib import Path

from bellwired.box.wanted import Wanted
from bellwired.settings import Device, Filters
from bellwired.workers.wire import Spawn


def order(
    name: str,
    settings: Device,
    plugins: list[str],
    folder: Path,
    box: Wanted,
    filters: Filters,
    trial: bool,
    *,
    succeeds: bool,
    as_left: bool,
) -> Spawn:
    """The order to the fork server for the device ``name``."""
    return Spawn(
        name=name,
        device=settings.device,
        options=dict(settings.options),
        log_level=settings.log_level,
        io_fd_entry=settings.io_fd_entry,
        dialect=settings.dialect,
        busy_poll=settings.busy_poll,
        plugins=plugins,
        folder=str(folder),
        max_maps=settings.max_maps,
        hello_timeout=settings.hello_timeout,
        trial=trial,
        filters=filters,
        box=box,
        succeeds=succeeds,
        as_left=as_left,
    )


def listens(settings: Device, path: Path) -> tuple[Path, str, str, str]:
    """The settings that a listener depends on."""
    return path, settings.mode, settings.owner, settings.group
