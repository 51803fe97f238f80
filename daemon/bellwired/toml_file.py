"""Reads a TOML file, and says on which line a key is set."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwire.paths import PathError, open_file
from bellwired.errors import SettingsError

LONGEST = 1 << 18  # bytes of a configuration file
_PART = r"(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')"
_TOO_DEEP = re.compile(rf"(?:^[ \t\[]*|[{{,][ \t]*){_PART}(?:[ \t]*\.[ \t]*{_PART}){{64}}", re.MULTILINE)
"""A dotted key of more than 64 parts, of which no key here has more than two."""
Place = Callable[[str], str]
"""A function that says where a key is set: FILE:LINE."""


def text(path: Path) -> str:
    """The text of a configuration file. Raises a SettingsError for more than 256 KiB.

    Only root and this process's user can have put it there: a device's file says which code runs.
    """
    try:
        with open(open_file(path), "rb") as file:
            content = file.read(LONGEST + 1)
    except PathError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}", error.hint) from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if len(content) > LONGEST:
        raise SettingsError(f"{path}: a configuration file has at most {LONGEST} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


def parsed(path: Path) -> tuple[dict[str, Any], Place]:
    """The table in a TOML file, and where its keys are."""
    found = text(path)
    if deep := _TOO_DEEP.search(found):  # tomllib takes a time that grows with the square of the length
        raise SettingsError(f"{path}:{found.count(chr(10), 0, deep.end()) + 1}: a key is nested too deeply")
    try:
        return tomllib.loads(found), lambda key: f"{path}{_line_of(key, found)}"
    except RecursionError:
        raise SettingsError(f"{path}: not TOML: nested too deeply") from None
    except ValueError as error:  # also for a number with too many digits
        told = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
        where, why = (f":{told[2]}", f"{told[1]} in column {told[3]}") if told else ("", str(error))
        raise SettingsError(f"{path}{where}: not TOML: {why}") from None


def _line_of(key: str, found: str) -> str:
    """``:LINE`` where a key of the file, or its table, begins; nothing if the file writes the key in an unusual way."""
    name = rf"[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*"
    begins = re.search(rf"^(?:{name}[.=]|[ \t]*\[+{name}[.\]])", found, re.MULTILINE)
    return f":{found.count(chr(10), 0, begins.start()) + 1}" if begins else ""
