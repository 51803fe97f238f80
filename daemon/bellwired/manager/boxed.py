"""The box of a device, as its manager knows it: what it is to be, what it is, and what it leaves behind."""

from __future__ import annotations

import contextlib
import pwd
from pathlib import Path
from typing import Any

import msgspec

from bellwired.box.needs import remove_made
from bellwired.box.wanted import Part, Wanted
from bellwired.errors import CommandError
from bellwired.settings import Device


class Boxed:
    """The box of one device's worker."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        """What the last worker's box is made of."""
        self._made: list[Path] = []

    def wanted(self, settings: Device) -> Wanted:
        """The box that a device's file asks for. Raises a CommandError if there is no such user."""
        user, group = _ids(settings.user)
        return Wanted(
            user=user,
            group=group,
            tasks_max=settings.tasks_max,
            words=settings.sandbox,
            read=settings.sandbox_read,
            write=settings.sandbox_write,
            memory_max=settings.memory_limit,
        )

    def entered(self, fields: dict[str, Any]) -> None:
        """The worker has entered it, and says what it is made of."""
        self.parts = msgspec.convert(fields["parts"], list[Part])
        self._made = [Path(path) for path in fields["made"]]

    def left(self) -> None:
        """The worker has ended: remove the sockets and links that it could not remove."""
        for path in self._made:
            with contextlib.suppress(OSError):  # another process has taken it
                remove_made(path)
        self._made = []


def _ids(user: str) -> tuple[int, int]:
    """The IDs of a user and its group, given by name or number; -1 for none."""
    if not user:
        return -1, -1
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if user.isdecimal():
            return int(user), int(user)
        raise CommandError(f"user = {user!r}: there is no such user", "name one, or give a number") from None
    return found.pw_uid, found.pw_gid
