"""Edited code of a device: it is tried in a process of its own, and then goes on in the worker that is there."""

from __future__ import annotations

from pathlib import Path

from bellwired.errors import CommandError
from bellwired.manager import trial
from bellwired.manager.life import State
from bellwired.manager.unit import Unit
from bellwired.settings import Device
from bellwired.sources import open_trusted, stamp
from bellwired.workers import hand_over, wire
from bellwired.workers.spawner import Spawner


async def try_out(unit: Unit, spawner: Spawner, device: Device, folder: Path) -> None:
    """Make the device from its files as they are now. A CommandError says what is wrong with them."""
    try:
        order = unit.order(device, folder, trial=True)
        await trial.attempt(spawner, order, unit.daemon.start_timeout)
    except CommandError as error:
        if (device, folder) != (unit.settings, unit.folder):
            unit.kept = str(error)
        elif unit.edited():
            unit.kept_code = str(error)
        raise


async def exchange(unit: Unit) -> bool:
    """Have a worker go on with its device's code as it is now, with the state and the client that it has.

    Returns whether that is another worker: it is if others work with what the device has handed on (vhost back ends).

    Files that have been exchanged are opened here: its box has only those of its start. If its worker has died, and no
    successor could go on, another one tries at once. A CommandError says why the new code does not go on.
    """
    if unit.state is not State.RUNNING:
        await unit.start()
        return True
    fds: list[int] = []
    try:
        files = [file for file in unit.edited() if stamp(Path(file))]  # the others are gone
        for file in files:
            fds += [open_trusted(Path(file))]
        pause = await unit.ask("reload", unit.daemon.start_timeout, fds, files="\n".join(files))
        unit.kept = unit.kept_code = ""
        if pause is None:
            await unit.move(hand_over.EDITED)
            return True
        unit.changed = {}  # the new code has the options of its file
        unit.exchanged(pause)
        return False
    except CommandError as error:
        unit.kept_code = str(error)
        raise
    finally:
        wire.close(fds)


async def move(unit: Unit, spawner: Spawner) -> None:
    """Have another worker go on with client and state. A CommandError, before the one that is there ends, if its
    device cannot be made anew of its files and options, or if files that have changed cannot go on.
    """
    if unit.state is State.RUNNING:
        await try_out(unit, spawner, unit.settings, unit.folder)
        if unit.edited() and unit.client is not None and await exchange(unit):
            return
    await unit.move()
