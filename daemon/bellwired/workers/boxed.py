"""A worker's way into its box."""

from __future__ import annotations

import socket
from pathlib import Path

from bellwire import BellwireError
from bellwired.box import enter, landlock, privileges
from bellwired.find import bundled, files_for
from bellwired.sources import is_path
from bellwired.workers import wire
from bellwired.workers.ledger import ManagersLedger
from bellwired.workers.wire import Report, Spawn


class BoxError(BellwireError):
    """The box of a device cannot be closed."""


def enter_box(spawn: Spawn, parent: int, channel: socket.socket) -> None:
    """Enter the box, and send the manager what it needs of it. Code of a plugin runs only after this."""
    if not spawn.box.on:
        return
    plugins = [Path(folder) for folder in spawn.plugins]
    kind = None if is_path(spawn.device) else bundled().get(spawn.device)
    need = enter.needs_of(kind, files_for(spawn.device, plugins), spawn.options, spawn.box)
    need.rules += [(folder, landlock.NAMES) for folder in plugins]  # to say what there is, if there is no such device
    if not spawn.trial:  # which opens nothing
        need.prepare(succeeds=spawn.succeeds)
    count = privileges.open_memory_count()
    box = enter.enter(need, spawn.box, parent)
    fds = [fd for fd in (count, box.listener) if fd >= 0]
    ManagersLedger(channel).send(Report("boxed", {"parts": box.parts, "made": box.made}), fds)
    wire.close(fds)
