"""``bellwire import``: a device file from a register map, and its declarations anew when the map has changed."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab

from bellwire.paths import Place, why
from bellwired.commands import show
from bellwired.commands.export import write
from bellwired.errors import CommandError


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import",
        help="make a device file from a register map in SystemRDL or IP-XACT",
        description="Makes a device file from a register map in SystemRDL, or in IP-XACT (a file that ends in .xml). "
        "If the file is there, only the declarations between its marks are made anew; hooks and everything else stay "
        "as they are. What a device file cannot say is reported on standard error. Needs the extra bellwire[maps].",
        parents=[shared],
    )
    file = parser.add_argument("map", type=Path, metavar="FILE", help="the register map")
    file.complete = shtab.FILE
    parser.add_argument("-w", "--output", type=Path, metavar="FILE.py", help="the device file (default: NAME.py here)")
    parser.add_argument("--top", default="", metavar="NAME", help="the address map to read (default: the file's last)")
    parser.add_argument(
        "-I", "--include", action="append", type=Path, default=[], metavar="DIR", help="where `include finds files"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--diff", action="store_true", help="write nothing, and print what would change")
    mode.add_argument("--check", action="store_true", help="write nothing; status 1 if the file is not up to date")
    parser.add_argument("--force", action="store_true", help="overwrite declarations that have been edited")
    parser.set_defaults(command=import_map)


def import_map(arguments: argparse.Namespace) -> int:
    """``bellwire import FILE``."""
    from bellwired.maps import device_file, from_rdl
    from bellwired.maps.names import plain

    with _ended_by_ctrl_c():
        found = from_rdl.read(arguments.map, top=arguments.top, include=arguments.include)
    path: Path = arguments.output or Path(f"{plain(found.device.name)}.py")
    old = _text(path)
    force = arguments.force or arguments.diff
    new = device_file.make(found.device, arguments.map.name, old, path, force=force)
    if not arguments.check:
        tell(found.lost, in_json=arguments.json)
    if arguments.diff:
        sys.stdout.write(device_file.difference(old, new, path))
        return 0
    if arguments.check:
        if new != old:
            raise CommandError(
                f"{path} is not what {arguments.map} says", "bellwire import --diff shows the difference"
            )
        return 0
    if new != old:
        write(path, new)
    if arguments.json:
        show.as_json({"file": str(path), "changed": new != old, "lost": [list(each) for each in found.lost]})
    else:
        print(f"{path}  {'written' if old is None else 'up to date' if new == old else 'updated'}")
    return 0


def _text(path: Path) -> str | None:
    """What a device file says; None if there is none. A CommandError if it can be no device file."""
    try:
        with Place(path) as place:
            if place.status() is None:
                return None
            with open(place.open(os.O_RDONLY | os.O_CLOEXEC), encoding="utf-8") as file:
                return file.read()
    except OSError as error:
        raise CommandError(f"{path}: {why(error)}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path}: it is not UTF-8, so it is no device file", "choose another name") from None


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: the compiler's parser catches a KeyboardInterrupt, and goes on."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tell(lost: tuple[tuple[str, str], ...], *, in_json: bool) -> None:
    """Report what the device file does not say."""
    if not in_json:
        for place, what in lost:
            print(f"bellwire: {place}: {what}", file=sys.stderr)
