"""Errors that end a command with one clear line."""

from __future__ import annotations

from bellwire import BellwireError


class CommandError(BellwireError):
    """A command has failed: the message says what went wrong, ``hint`` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def in_words(self) -> str:
        """The message and the hint in one line."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class SettingsError(CommandError):
    """A configuration file cannot be used. The message names the file, the line, the key, and what was expected."""
