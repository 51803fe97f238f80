"""A device as the control API tells of it. (Varlink reads these annotations as they are, not as text.)"""

import contextlib
from typing import TypedDict

from bellwired.errors import CommandError
from bellwired.manager.life import State
from bellwired.manager.unit import Unit
from bellwired.settings import SettingsError
from bellwired.workers import process

DISABLED = "disabled"
"""The state of a device that may not be started."""
PATIENCE = 1.0  # seconds: one that hangs is to be described all the same


class Client(TypedDict):
    """Who is connected."""

    pid: int
    uid: int
    since: float
    capabilities: dict[str, str]
    maps: int
    bytes: int


class Note(TypedDict):
    """Something that happened."""

    time: float
    text: str


class RegisterValue(TypedDict):
    """One register; ``meaning`` has the names of its flags or of its value."""

    name: str
    bar: int
    offset: int
    size: int
    access: str
    value: int
    meaning: str


class Description(TypedDict):
    """One device. ``memory`` is its share (PSS) in bytes, ``since`` seconds of the epoch.

    ``changed`` are the options that have other values now than the file gives them.
    """

    name: str
    device: str
    state: str
    since: float
    autostart: bool
    enabled: bool
    socket: str
    pid: int
    memory: int
    restarts: int
    error: str
    connected: bool
    client: Client | None
    changed: dict[str, str]
    statistics: dict[str, int]
    recent: list[Note]


async def describe(unit: Unit, *, statistics: bool = True, recent: bool = True) -> Description:
    """All about ``unit``. Its ``statistics`` must be asked of the worker; ``recent`` is what happened lately."""
    counted: dict[str, int] = {}
    if statistics and unit.state is State.RUNNING:
        with contextlib.suppress(CommandError):  # it has just ended, or is busy: the rest is true all the same
            counted = dict(await unit.ask("statistics", PATIENCE))
    return Description(
        name=unit.name,
        device=unit.settings.device,
        state=str(unit.state) if unit.settings.enabled or unit.state is not State.STOPPED else DISABLED,
        since=unit.since,
        autostart=unit.settings.autostart,
        enabled=unit.settings.enabled,
        socket=unit.address,
        pid=unit.pid,
        memory=process.memory(unit.pid) if unit.pid else 0,
        restarts=unit.restarts,
        error=unit.error,
        connected=unit.client is not None,
        client=_client(unit),
        changed=unit.changed,
        statistics=counted,
        recent=[Note(time=when, text=text) for when, text in unit.recent] if recent else [],
    )


def describe_unusable(name: str, error: SettingsError, since: float) -> Description:
    """A device whose file cannot be used."""
    return Description(
        name=name,
        device="",
        state=str(State.FAILED),
        since=since,
        autostart=False,
        enabled=True,
        socket="",
        pid=0,
        memory=0,
        restarts=0,
        error=error.in_words,
        connected=False,
        client=None,
        changed={},
        statistics={},
        recent=[],
    )


def _client(unit: Unit) -> Client | None:
    known = unit.client
    if known is None:
        return None
    return Client(
        pid=known["pid"],
        uid=known["uid"],
        since=known["since"],
        capabilities={key: str(value) for key, value in known.get("capabilities", {}).items()},
        maps=known.get("maps", 0),
        bytes=known.get("bytes", 0),
    )
