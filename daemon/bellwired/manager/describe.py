"""A device as the control API describes it. (Varlink needs these annotations as types, not as text.)"""

import contextlib
from typing import TypedDict

from bellwired.errors import CommandError, SettingsError
from bellwired.manager.life import State
from bellwired.manager.unit import Unit

DISABLED = "disabled"
"""The state of a device that may not be started."""
PATIENCE = 1.0  # seconds: a device that hangs is described too


class About(TypedDict):
    """The daemon itself. ``troubles`` has what does not work of it, by its part."""

    version: str
    pid: int
    uid: int
    summary: str
    troubles: dict[str, str]


class Client(TypedDict):
    """The connected client."""

    pid: int
    uid: int
    since: float
    capabilities: dict[str, str]
    maps: int
    bytes: int


class Note(TypedDict):
    """A recent event of a device."""

    time: float
    text: str


class BoxPart(TypedDict):
    """A part of the box around a worker. ``state`` is here, missing (the system has none) or off (not wanted)."""

    name: str
    state: str
    about: str
    hint: str


class RegisterValue(TypedDict):
    """A register. ``meaning`` has the names of its flags or of its value.

    ``bar`` is 0 to 5, or 7 for a register in config space.
    """

    name: str
    bar: int
    offset: int
    size: int
    access: str
    value: int
    meaning: str


class HandOver(TypedDict):
    """Workers that have gone on with the client of another: their number, and of the last one why, and the pause."""

    count: int
    reason: str
    pause_ms: float


class Description(TypedDict):
    """A device. ``memory`` is its proportional share (PSS) in bytes, ``since`` is in seconds since the epoch.

    ``changed`` has the options whose present values differ from the file's. ``code`` has the Python files that its
    worker runs, by path, with the time of the last change of what it runs, in seconds since the epoch. ``troubles`` has
    what differs from what the worker was started with, by its part: ``file``, ``socket``, ``code``.
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
    hand_overs: HandOver
    error: str
    connected: bool
    client: Client | None
    changed: dict[str, str]
    box: list[BoxPart]
    code: dict[str, float]
    troubles: dict[str, str]
    statistics: dict[str, int]
    recent: list[Note]


async def describe(
    unit: Unit, bad: SettingsError | None = None, *, statistics: bool = True, recent: bool = True
) -> Description:
    """Describe ``unit``, whose file is ``bad`` now. ``statistics`` asks its worker; ``recent`` adds recent events."""
    counted: dict[str, int] = {}
    if statistics and unit.state is State.RUNNING:
        with contextlib.suppress(CommandError):  # the worker has just ended, or is busy: the rest is still valid
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
        memory=unit.memory,
        restarts=unit.restarts,
        hand_overs=HandOver(
            count=unit.hand_overs.count, reason=unit.hand_overs.reason, pause_ms=unit.hand_overs.pause * 1e3
        ),
        error=unit.error,
        connected=unit.client is not None,
        client=_client(unit),
        changed=unit.changed,
        box=[BoxPart(name=part.name, state=part.state, about=part.about, hint=part.hint) for part in unit.box.parts]
        if recent
        else [],
        code={file: known[1] / 1e9 for file, known in unit.files.items() if known is not None},
        troubles=_troubles(unit, bad) if unit.pid else {},
        statistics=counted,
        recent=[Note(time=when, text=text) for when, text in unit.recent] if recent else [],
    )


def describe_unusable(name: str, error: SettingsError, since: float, *, enabled: bool) -> Description:
    """A device whose file cannot be used."""
    return Description(
        name=name,
        device="",
        state=str(State.FAILED) if enabled else DISABLED,
        since=since,
        autostart=False,
        enabled=enabled,
        socket="",
        pid=0,
        memory=0,
        restarts=0,
        hand_overs=HandOver(count=0, reason="", pause_ms=0.0),
        error=error.in_words,
        connected=False,
        client=None,
        changed={},
        box=[],
        code={},
        troubles={},
        statistics={},
        recent=[],
    )


def _troubles(unit: Unit, bad: SettingsError | None) -> dict[str, str]:
    found: dict[str, str] = {}
    if why := bad.in_words if bad is not None else unit.kept or unit.kept_code:
        found["file"] = f"it runs as before its files changed: {why}"
    if unit.socket.is_lost(unit.path):
        mend = "restart its socket unit" if unit.socket.given is not None else f"bellwire restart {unit.name}"
        found["socket"] = f"{unit.address} was removed or replaced, so no client finds it: {mend}"
    if unit.old_code:
        found["code"] = f"{unit.old_code}: mend that, and then bellwire reload"
    elif edited := unit.edited():
        found["code"] = f"changed since its worker started: {', '.join(edited)}: bellwire restart {unit.name}"
    return found


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
