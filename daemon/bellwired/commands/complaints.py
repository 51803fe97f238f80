"""How commands tell their errors: to people and to programs, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from bellwired import terminal
from bellwired.errors import CommandError


def errors(found: Iterable[Exception], *, in_json: bool = False) -> None:
    """Print errors to standard error: one line each, with the hint. For programs, one JSON object a line."""
    for error in found:
        hint = error.hint if isinstance(error, CommandError) else ""
        if in_json:
            print(terminal.json_text({"error": str(error), "hint": hint}), file=sys.stderr)
            continue
        print(f"bellwire: {terminal.line(error)}", file=sys.stderr)
        if hint:
            print(f"  {terminal.line(hint)}", file=sys.stderr)


def error_with_log(error: Exception) -> None:
    """Print an error to standard error. Its text may have several lines, such as the end of a log."""
    print(f"bellwire: {terminal.paragraph(error)}", file=sys.stderr)
    if isinstance(error, CommandError) and error.hint:
        print(f"  {terminal.line(error.hint)}", file=sys.stderr)
