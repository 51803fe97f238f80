"""The box of a device, as its manager knows it: what it is to be, what it is, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import pwd
from pathlib import Path
from typing import Any

import msgspec

from bellwired.box.groups import Groups, Limits
from bellwired.box.remains import remove_made
from bellwired.box.users import Users
from bellwired.box.wanted import Part, Wanted
from bellwired.errors import CommandError
from bellwired.settings import Device

AGAIN = 0.05  # seconds until the removal of a control group is tried again


class Boxed:
    """The box of the worker of the device ``name``, with its control group among ``groups`` and a user of ``users``."""

    def __init__(self, name: str = "", groups: Groups | None = None, users: Users | None = None) -> None:
        self._name = name
        self._groups = groups or Groups()
        self._users = users or Users()
        self._removal: asyncio.TimerHandle | None = None
        self.parts: list[Part] = []
        """What the last worker's box is made of."""
        self._made: list[Path] = []

    def wanted(self, settings: Device, span: str = "", *, grouped: bool = True) -> Wanted:
        """The box that a device's file asks for, with its control group made if ``grouped``.

        ``span`` is ``worker-users``, for a device whose file names no user. Raises a CommandError if there is no such
        user, or if the group cannot be made.
        """
        user, group = _ids(settings.user)
        if span and not settings.user:
            user = group = self._users.of(self._name, span)
        folder = self._grouped(settings) if grouped else ""
        return Wanted(
            cpu_quota=settings.cpu_percent,
            control_group=folder,
            controllers=self._groups.controllers if folder else (),
            lack=self._groups.lack,
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

    def fate(self, settings: Device) -> str:
        """Why the kernel has killed the worker, if that was for its memory; else empty."""
        if settings.memory_max and self._groups.out_of_memory(self._name):
            return f"its worker was killed: it used more than memory-max = {settings.memory_max}"
        return ""

    def left(self) -> None:
        """The worker has ended: end what it has started, and remove the sockets and links that it could not remove."""
        self._remove_group()
        for path in self._made:
            with contextlib.suppress(OSError):  # another process has taken it
                remove_made(path)
        self._made = []

    def _grouped(self, settings: Device) -> str:
        if self._removal is not None:
            self._removal.cancel()
            self._removal = None
        return self._groups.make(self._name, Limits(settings.memory_limit, settings.cpu_percent, settings.tasks_max))

    def _remove_group(self) -> None:
        self._removal = None
        if not self._groups.remove(self._name):
            self._removal = asyncio.get_running_loop().call_later(AGAIN, self._remove_group)


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
