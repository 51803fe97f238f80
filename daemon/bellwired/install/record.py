"""The list of the files that an installation has written: one path a line; a folder's ends in a slash.

This module needs only Python. So it can remove an installation that no longer runs:
``python -m bellwired.install.record RECORD [DESTDIR]``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

NAME = "installed"


def staged(path: Path | str, destination: Path | None) -> Path:
    """Where ``path`` lies now: below ``destination`` (DESTDIR) until it is shipped."""
    return Path(path) if destination is None else destination / Path(path).relative_to("/")


def read(record: Path) -> list[str]:
    """The paths in a record; none without a record. Raises a ValueError for a file that is not a record."""
    try:
        lines = record.read_text().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, 1):
        if not line.startswith("/") or ".." in Path(line).parts:
            raise ValueError(f"{record}:{number}: {line!r} is no absolute path: not a record of an installation")
    return lines


def remove(lines: Iterable[str], destination: Path | None) -> None:
    """Remove files, and folders that are empty then. Missing ones are ignored."""
    for line in sorted(lines, reverse=True):  # a folder comes after what is in it
        path = staged(line, destination)
        try:
            if line.endswith("/"):
                path.rmdir()
            else:
                path.unlink()
        except OSError:
            if not line.endswith("/") and os.path.lexists(path):
                raise


def main(words: Sequence[str]) -> int:
    """Remove everything in the record, and the record itself."""
    record, destination = Path(words[0]), Path(words[1]).absolute() if words[1:] and words[1] else None
    lines = read(staged(record, destination))
    if not lines:
        print(f"{staged(record, destination)}: nothing was installed here", file=sys.stderr)
        return 1
    remove(lines, destination)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
