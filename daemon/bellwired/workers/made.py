"""How a worker makes its device: of the files on disk, or of those that the worker before it has left."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from bellwire import PciDevice
from bellwire.filters import Filter
from bellwire.serve.blame import told
from bellwired import filtering, sources
from bellwired.errors import CommandError
from bellwired.find import find_trusted
from bellwired.workers.code import find_left, left, why_left
from bellwired.workers.ledger import inherit
from bellwired.workers.relay import say
from bellwired.workers.wire import Report, Spawn
from vfio_user import Estate


def made(spawn: Spawn, channel: socket.socket) -> tuple[PciDevice, list[Filter], Estate | None]:
    """The device, the filters before it, and what the worker before has left, if this is its successor."""
    plugins = [Path(folder) for folder in spawn.plugins]
    estate = inherit(channel) if spawn.as_left else None
    try:
        if (before := left(estate)) is not None and not before.current:
            raise CommandError(why_left(estate))
        device, filters = _made(spawn, channel, lambda: find_trusted(spawn.device, plugins))
    except Exception as error:
        if not spawn.succeeds:
            raise
        estate = estate or inherit(channel)
        find, words = find_left(spawn.device, estate, error)
        device, filters = _made(spawn, channel, find)
        estate.older = True
        say(channel, Report("old-code", {"text": words}))
        return device, filters, estate
    return device, filters, inherit(channel) if spawn.succeeds and estate is None else estate


def _made(spawn: Spawn, channel: socket.socket, find: Callable[[], type[PciDevice]]) -> tuple[PciDevice, list[Filter]]:
    try:
        kind = find()
    finally:
        say(channel, Report("made", {"files": sources.loaded()}))
    with told(f"{kind.__name__}.__init__"):
        device = kind(**spawn.options)
    return device, filtering.all_made(spawn.filters, kind)
