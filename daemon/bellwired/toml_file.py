"""Reads a TOML file, and says on which line a key is set."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwired.errors import SettingsError

LONGEST = 1 << 18  # bytes of a configuration file
Place = Callable[[str], str]
"""A function that says where a key is set: FILE:LINE."""


def text(path: Path) -> str:
    """The text of a configuration file. Raises a SettingsError unless it is a regular file of at most 256 KiB."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe must not wait for a writer
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            content = os.pread(fd, LONGEST + 1, 0) if regular else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if not regular:
        raise SettingsError(f"{path}: not a regular file")
    if len(content) > LONGEST:
        raise SettingsError(f"{path}: a configuration file has at most {LONGEST} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


def parsed(path: Path) -> tuple[dict[str, Any], Place]:
    """The table in a TOML file, and where its keys are."""
    found = text(path)
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
