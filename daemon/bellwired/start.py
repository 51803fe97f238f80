"""The entry point of the ``bellwire`` command. Ctrl-C while its modules load ends it without a traceback."""

from __future__ import annotations

import io
import signal
import sys


def main() -> int:
    """Load and run the command."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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
