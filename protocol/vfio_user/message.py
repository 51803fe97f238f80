"""A message as it is given out, and what belongs to it."""

from __future__ import annotations

import os
from typing import NamedTuple

from vfio_user.constants import Command, MessageFlags


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
