"""A device that is made of the words of a command line."""

from __future__ import annotations

import shlex

from bellwire import OptionError, PciDevice
from bellwire.serve.blame import told
from bellwired.errors import CommandError


def options_of(texts: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as options."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"-o {text}: expected KEY=VALUE")
        values[key] = value
    return values


def make(device: type[PciDevice], options: list[str], word: str) -> PciDevice:
    """Make an instance from ``KEY=VALUE`` texts. ``word`` is how the user has named the device."""
    try:
        with told(f"{device.__name__}.__init__"):
            return device(**options_of(options))
    except OptionError as error:
        hint = f"bellwire run {shlex.quote(word)} --print-capabilities lists its options"
        raise CommandError(str(error), hint) from None
