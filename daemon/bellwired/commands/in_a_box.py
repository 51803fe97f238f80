"""The box around ``bellwire run``: what needs no privilege. It closes before the device is set up.

The user's file is imported and its options are checked outside: it is the user's own, started by hand. What a guest
reaches, the hooks, runs inside.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from bellwire import PciDevice
from bellwired.box import enter, landlock, privileges
from bellwired.box.enter import Box
from bellwired.box.keeper import Keeper
from bellwired.box.wanted import OFF, Part, Wanted
from bellwired.errors import CommandError
from bellwired.find import files_for, is_bundled
from bellwired.sources import loaded

log = logging.getLogger("bellwire")


def close(
    instance: PciDevice, device: str, sockets: list[Path], stack: ExitStack, *, under: int = 0, succeeds: bool = False
) -> Box:
    """Enter the box. At the end of ``stack`` the sockets are removed that this process may not remove any more.

    Those of a process that is ``under`` a parent are the parent's, and are removed if that has been killed. It
    may go on with what a process before it had open (``succeeds``).

    Call it before threads are started. What is on the stack already is undone later, in the box's process or beside it.
    """
    kind = type(instance)
    files = [path for path in files_for(device, []) if path.exists()]
    options = {name: str(value) if isinstance(value, Path) else value for name, value in instance.core.options.items()}
    need = enter.needs_of(kind if is_bundled(kind) else None, files, options, Wanted())
    need.rules += [(path, landlock.READ) for path in {file.parent for file in (*files, *map(Path, loaded()))}]
    if sys.stdin.isatty():
        need.calls.add("pty")  # for breakpoint()
    try:
        need.prepare(succeeds=succeeds)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None
    count = privileges.open_memory_count()
    keeper = Keeper()
    stack.callback(keeper.end)
    box = enter.unprivileged(need)
    box.memory_count = count
    keeper.take(box.listener, box.made, list(map(str, sockets)), under)
    return box


def none(why: str) -> Box:
    """No box."""
    log.warning("no box: the device may do all that its user may (%s)", why)
    return Box([Part("box", OFF, f"{why}: the device may do all that its user may")])
