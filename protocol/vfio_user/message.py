"""A message as it is given out, and what belongs to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from vfio_user.constants import Command, MessageFlags
from vfio_user.errors import VfioUserError


class Message(NamedTuple):
    """A received message. ``payload`` is valid until the next receive. The receiver owns ``fds`` and closes them."""

    id: int
    command: int
    flags: int
    error: int
    payload: memoryview
    fds: list[int]

    @property
    def is_reply(self) -> bool:
        """Whether this message is a reply, not a command."""
        return self.flags & 0xF == MessageFlags.REPLY

    @property
    def name(self) -> str:
        """The command's name, or its number."""
        return command_name(self.command)


def command_name(number: int) -> str:
    """The name of a command for messages to people: ``REGION_READ``; ``command 99`` if the number is unknown."""
    return Command(number).name if number in Command._value2member_map_ else f"command {number}"


def close_fds(fds: list[int]) -> None:
    """Close the descriptors and empty the list."""
    while fds:
        os.close(fds.pop())


def duplicates(fds: Sequence[int]) -> list[int]:
    """Duplicates, which the caller owns. Raises OSError, with none made, if one cannot be made."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 so that those before one that fails are known
    except OSError:
        close_fds(made)
        raise
    return made


def unsendable(name: str, fds: Sequence[int]) -> VfioUserError | None:
    """Why descriptors cannot travel with a message called ``name``: some are not open (EBADF). None if all are."""
    bad = [str(fd) for fd in fds if not _is_open(fd)]
    return VfioUserError(f"{name}: no open descriptor: {', '.join(bad)}", errno.EBADF) if bad else None


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
