"""The entry point of the ``bellwire`` command. Ctrl-C while its modules load ends it without a traceback."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> int:
    """Load and run the command."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot show must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.argv[1:2] == ["__complete"]:  # a user waits for the completion: load only what it needs
        from bellwired.commands.completion import main as complete

        return complete(sys.argv[2:])
    from bellwired.commands.cli import main as command

    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


def _open_streams() -> None:
    """Open /dev/null for each standard stream that is closed, or a socket would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
