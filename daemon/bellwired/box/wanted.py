"""What a box is to be, and what it has become: the words between the manager and a worker."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

HERE = "here"
MISSING = "missing"
OFF = "off"


class Part(Struct, frozen=True):
    """A part of a box. ``state`` is "here", "missing" (this system has no such thing) or "off" (it is not wanted)."""

    name: str
    state: str
    about: str
    hint: str = ""
    """What to do about a part that is not here."""


class Wanted(Struct, frozen=True):
    """What a device's file says of its box. ``words`` are groups of calls, or single calls."""

    on: bool = True
    words: Sequence[str] = ()
    read: Sequence[str] = ()
    write: Sequence[str] = ()
    user: int = -1
    group: int = -1
    memory_max: int = 0
    """Bytes of memory; 0 is no limit."""
    tasks_max: int = 0
    """Threads and processes; 0 is no limit."""
    cpu_quota: int = 0
    """Percent of one processor; 0 is no limit."""
    control_group: str = ""
    """The folder of its control group, where its limits are set; empty if it has none."""
    controllers: Sequence[str] = ()
    """The controllers of that group, which hold it to the limits."""
    lack: str = ""
    """Why it has no control group."""
