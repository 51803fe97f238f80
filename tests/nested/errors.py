"""What keeps the bed from being made."""

from __future__ import annotations


class BedError(Exception):
    """Something is missing or has failed; the message says what, ``hint`` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(hint)


class LackError(BedError):
    """This machine has not what it takes to build a kernel."""


class LateError(BedError):
    """What runs in the bed was not done in time."""
