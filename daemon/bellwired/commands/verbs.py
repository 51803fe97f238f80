"""Commands that do one thing to each of several devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """A command that calls one method of the control API for devices. ``fits`` says which devices --all selects."""

    method: str
    about: str
    fits: Callable[[dict[str, Any]], bool]


VERBS = {
    "start": Verb("Start", "start devices, and wait until they accept clients", lambda device: device["enabled"]),
    "stop": Verb("Stop", "stop devices in order, and remove their sockets", lambda device: True),
    "restart": Verb(
        "Restart", "give devices new workers; clients that connect meanwhile wait", lambda device: device["enabled"]
    ),
    "move": Verb(
        "Move",
        "give devices new workers, which go on with their clients and states",
        lambda device: device["state"] == "running",
    ),
    "reset": Verb("Reset", "reset devices, as their guests could", lambda device: device["state"] == "running"),
    "disconnect": Verb(
        "Disconnect", "let the clients of devices go; others may come", lambda device: device["connected"]
    ),
}
