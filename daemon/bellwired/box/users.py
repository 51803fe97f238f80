"""Users of their own for the workers of one daemon."""

from __future__ import annotations

import zlib

from bellwired.errors import CommandError

LAST = (1 << 32) - 2
"""The highest number of a user: (uid_t)-1 stands for none."""


def span_of(text: str) -> range:
    """The numbers "FIRST-LAST". Raises a ValueError for other texts, and for numbers that no user can have."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) <= LAST):
        raise ValueError(f"worker-users = {text!r}: expected FIRST-LAST, two numbers from 1 to {LAST}")
    return range(int(first), int(last) + 1)


class Users:
    """Gives each device a number from a range.

    The number comes from the device's name. So it stays the same when other devices come and go, and the files that
    belong to it stay the device's. Two names can meet at one number; then the second device is refused.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def of(self, name: str, span: str) -> int:
        """The user of the device ``name`` from ``span``. Raises a CommandError if another device has that number."""
        numbers = span_of(span)
        number = numbers[zlib.crc32(name.encode()) % len(numbers)]
        other = self._names.setdefault(number, name)
        if other != name:
            hint = "give one of them user = in its file, or widen worker-users"
            raise CommandError(f"{name} and {other} would both run as user {number}", hint)
        return number
