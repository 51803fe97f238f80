"""``bellwire view``: devices as they live, in a terminal or a browser."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwired.box.privileges import die_with_parent
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.operate import instance
from bellwired.errors import CommandError

if TYPE_CHECKING:
    from bellwired.commands.view.app import View

PORT, MOST_PORT = 8423, 0xFFFF
SERVER = "BELLWIRE_VIEW_SERVER"
"""The environment variable by which a view knows the process that serves its page: it ends with that."""
SIZE = (120, 36)
"""Columns and lines of a screenshot."""
PATIENCE = 10.0  # seconds for a reading
_FONTS = re.compile(r"@font-face \{[^}]*\}")  # they would be fetched from elsewhere by whoever looks at the picture


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command; ``shared`` has the flags of all commands that ask a daemon."""
    parser = commands.add_parser(
        "view",
        parents=[shared],
        help="look at devices as they live: registers, rates, memory, log",
        description="Look at devices as they live: registers and what changes in them, rates of rings, accesses and "
        "interrupts, guest memory, the log. It needs the extra bellwire[view].",
    )
    completed(parser.add_argument("name", nargs="?", help="the device to begin with (default: the first)"), DEVICES)
    parser.add_argument(
        "--change",
        action="store_true",
        help="let keys change the device: p pokes registers and doorbells, i raises an interrupt, r resets",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--web", action="store_true", help="serve the view to a browser on this machine, and print its address"
    )
    where.add_argument("--screenshot", type=Path, metavar="FILE", help="draw the view once, to this SVG file, and end")
    parser.add_argument("--port", type=_port, help=f"the port of --web (default {PORT}; 0: any)")
    parser.set_defaults(command=view, mistake=parser.error)


def view(arguments: argparse.Namespace) -> int:
    """``bellwire view [NAME]``."""
    if arguments.port is not None and not arguments.web:
        arguments.mistake("--port is for --web")
    needed = ["textual", *(["textual_serve"] if arguments.web else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise CommandError(f"{missing[0]} is not installed", "pip install 'bellwire[view]'")
    from bellwired.commands.view.source import Source

    if server := os.environ.pop(SERVER, ""):
        die_with_parent(int(server))
    source = Source(instance(arguments))
    if arguments.name:
        source.read(arguments.name)  # for an error before the screen changes
    if arguments.web:
        from bellwired.commands.view.web import serve

        os.environ[SERVER] = str(os.getpid())
        return serve(_again(arguments), PORT if arguments.port is None else arguments.port)
    from bellwired.commands.view.app import View

    app = View(source, arguments.name, may_change=arguments.change)
    if arguments.screenshot:
        arguments.screenshot.write_text(asyncio.run(_draw(app)))
        return 0
    if not (server or (sys.stdin.isatty() and sys.stderr.isatty())):  # Textual draws on standard error
        raise CommandError("the view needs a terminal", "--web shows it in a browser, and --screenshot draws it once")
    app.run()
    return app.return_code or 0


def _again(arguments: argparse.Namespace) -> list[str]:
    """The command that shows the same in a terminal: one runs for each page."""
    words = [sys.executable, "-m", "bellwired", "view"]
    words += [f"--{arguments.whose}"] if arguments.whose else []
    for flag in ("config_dir", "runtime_dir", "timeout"):
        if value := getattr(arguments, flag):
            words += [f"--{flag.replace('_', '-')}", str(value)]
    words += ["--change"] if arguments.change else []
    return [*words, *([arguments.name] if arguments.name else [])]


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to {MOST_PORT}, got {text!r}")
    return int(text)


async def _draw(app: View) -> str:
    """The view as SVG, once it has a reading."""
    async with app.run_test(size=SIZE) as pilot:
        async with asyncio.timeout(PATIENCE):
            while not app.readings:
                await pilot.pause(0.01)
        await pilot.pause()
        return _FONTS.sub("", app.export_screenshot(title="bellwire view"))
