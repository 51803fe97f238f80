"""The boundary at which text leaves to a terminal. No text that came from elsewhere controls the terminal there.

Device names, options, log lines, guests' strings, exceptions of plugins and file names are chosen by others. Among
their characters may be escape sequences, which move the cursor or write into the terminal's input; line ends, which
forge a line; and bidirectional controls, which reorder what is read. They are shown as escapes, such as ``\\x1b``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

INDENT = "  "
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls (Unicode TR 9)
    "\u2028\u2029\ud800-\udfff]"  # line and paragraph separators; what cannot be encoded
)


def line(text: object) -> str:
    """``text`` for a place within one line: every control character, line ends too, is shown as an escape."""
    return _CONTROLS.sub(_escape, str(text))


def lines(text: object) -> str:
    """``text`` of several lines. Line ends and tabulators stay; other control characters are shown as escapes."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), str(text))


def paragraph(text: object) -> str:
    """``text`` of several lines, all indented except the first: none of them looks like the start of another text."""
    return lines(text).replace("\n", f"\n{INDENT}")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON in ASCII. No control character is left as it is, DEL included."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Formatter(logging.Formatter):
    """Formats a record so that it starts one line, and no other line of its text looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of the record, with its traceback."""
        return paragraph(super().format(record))


class Guarded(io.TextIOWrapper):
    """A standard stream that writes no control characters except line ends and tabulators. It ends with ``stream``."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors="replace", line_buffering=stream.line_buffering
        )
        self.raw = _Raw(self)
        """The same stream for text that is trusted: the colours of tables."""

    def write(self, text: str) -> int:
        """Write ``text``. Returns its length."""
        super().write(lines(text))
        return len(text)

    def write_raw(self, text: str) -> int:
        """Write ``text`` as it is."""
        return super().write(text)

    def close(self) -> None:
        """Leave the descriptor open: it is that of the stream behind this one."""
        self.flush()


class _Raw:
    """The file that :mod:`rich` writes to."""

    def __init__(self, stream: Guarded) -> None:
        self._stream = stream
        self.write = stream.write_raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def raw(stream: Any) -> Any:
    """The file for text that is trusted, behind a standard stream."""
    return stream.raw if isinstance(stream, Guarded) else stream


def guard() -> None:
    """Guard standard output and error from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream))


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard standard output and error while the block lasts."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
