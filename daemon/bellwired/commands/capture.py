"""``bellwire capture``: what a running device and its client say to each other, in a file for Wireshark."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncvarlink import FileDescriptor

from bellwire.capture.files import SMALLEST, check_files
from bellwired import terminal
from bellwired.commands import show
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.control_client import Instance, call
from bellwired.commands.operate import instance
from bellwired.errors import CommandError
from bellwired.workers.captures import DMA_TIMELINE, LARGEST, MOST_FILES, PCAPNG, TIMELINE, WHOLE

LONGEST = 1_000_000  # seconds
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command; ``shared`` has the flags that all commands to a daemon take."""
    parser = commands.add_parser(
        "capture",
        help="write what a device and its client say to each other to a file for Wireshark",
        description="Writes all vfio-user messages of a running device, and its events, to a pcapng file, until "
        "Ctrl-C. The device's client stays connected. Wireshark takes the file apart with the script that "
        "`bellwire install` installs.",
        parents=[shared],
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--timeline",
        action="store_true",
        help="write a timeline for Perfetto instead: rings, methods of the device, interrupts",
    )
    parser.add_argument(
        "--dma", action="store_true", help="with --timeline: its DMA too, which makes some devices slower"
    )
    parser.add_argument("--for", dest="seconds", type=duration, metavar="TIME", help="end after this time: 10s, 5m, 1h")
    add_sizes(parser)
    parser.set_defaults(command=capture)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that bound the files."""
    parser.add_argument(
        "--size", type=size, default=WHOLE, metavar="BYTES", help="the most that a file may have: 64M, 1G (default 1G)"
    )
    parser.add_argument(
        "--files",
        type=int,
        choices=range(1, MOST_FILES + 1),
        default=1,
        metavar="N",
        help=f"write N files in turn, each over its oldest content, as a.pcapng and a.1.pcapng (1, the default, to "
        f"{MOST_FILES}); with one file, the capture ends when the file is full",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``bellwire run``."""
    parser.add_argument(
        "--capture",
        type=Path,
        metavar="FILE",
        help="write all messages and events to FILE, for Wireshark, at most 1 GiB (see bellwire capture)",
    )
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="write rings, methods of the device and interrupts to FILE, for Perfetto, at most 1 GiB",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="record all that comes from the guest to FILE, from the device's start on, for bellwire replay. At 1 GiB "
        "the recording ends, and the device goes on",
    )


def asked(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, int]:
    """The captures that the flags of ``bellwire run`` ask for: a file of each form, open until the end of ``stack``."""
    found = {}
    for form, path in ((PCAPNG, arguments.capture), (TIMELINE, arguments.timeline)):
        if path is not None:
            (found[form],) = stack.enter_context(opened(path, 1))
    return found


def capture(arguments: argparse.Namespace) -> int:
    """``bellwire capture NAME -o FILE``."""
    if arguments.dma and not arguments.timeline:
        raise CommandError("--dma is for a timeline", "add --timeline")
    daemon = instance(arguments)
    with opened(arguments.output, arguments.files) as fds:
        figures = call(daemon, lambda api: _listen(api, daemon, arguments, fds), arguments.name, endless=True)
    if arguments.json:
        show.as_json(figures)
    else:
        counted = f"{figures['messages']} messages, {figures['events']} events, {figures['bytes']} bytes"
        print(terminal.line(f"{counted}: {arguments.output} ({figures['ended']})"))
    return 0


async def _listen(api: Any, daemon: Instance, arguments: argparse.Namespace, fds: Sequence[int]) -> dict[str, Any]:
    """Wait for the end of the capture, which a signal brings about in order. Returns the last figures."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _ENDINGS:
        loop.add_signal_handler(number, stop.set)
    figures: dict[str, Any] = {}
    asked = None
    async for reply in api.Capture(
        name=arguments.name,
        form=(DMA_TIMELINE if arguments.dma else TIMELINE) if arguments.timeline else PCAPNG,
        files=[FileDescriptor(fd) for fd in fds],
        limit=arguments.size,
        seconds=arguments.seconds,
    ):
        if not figures and not arguments.json:
            begun = f"capturing {arguments.name} to {arguments.output}; Ctrl-C ends it"
            print(terminal.line(begun), file=sys.stderr, flush=True)
        figures = dict(reply["capture"])
        if stop.is_set() and asked is None:
            asked = loop.run_in_executor(None, _stop, daemon, arguments.name, figures["number"])
    if asked is not None:
        await asked
    return figures


def _stop(daemon: Instance, name: str, number: int) -> None:
    """Ask for the end of the capture, by a second connection: the first one is busy with the replies."""

    async def work(api: Any) -> None:
        await api.StopCapture(name=name, number=number)

    call(daemon, work, name)


@contextlib.contextmanager
def opened(path: Path, number: int) -> Iterator[list[int]]:
    """``number`` files, open for writing: ``path`` and, beside it, those whose names have a number in them.

    Each is locked as long as a descriptor of it is open, also in another process. At the end of the block, files that
    are new and empty are removed.
    """
    fds: list[int] = []
    new: list[tuple[int, Path]] = []
    try:
        for each in range(number):
            name = path if each == 0 else numbered(path, each)
            is_new = not os.path.lexists(name)
            fds.append(_open(name))
            _lock(fds[-1], name)
            if is_new:
                new.append((fds[-1], name))
        yield fds
    finally:
        for fd, name in new:
            if not os.fstat(fd).st_size:
                name.unlink(missing_ok=True)
        for fd in fds:
            os.close(fd)


def _open(path: Path) -> int:
    """Open a file for writing. It keeps what it has: perhaps somebody else writes it. A FIFO does not block."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _lock(fd: int, path: Path) -> None:
    """Lock a file against other writers. The lock goes with the descriptor to the process that writes."""
    if why := check_files([fd]):
        raise CommandError(f"{path}: {why}")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        in_use = "in use by another capture or recording"
        raise CommandError(f"{path}: {in_use if error.errno == errno.EWOULDBLOCK else error.strerror}") from None


def numbered(path: Path, number: int) -> Path:
    """The name of a further file: a.1.pcapng beside a.pcapng."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def size(text: str) -> int:
    """A number of bytes, as in 64M."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    value = int(found[1]) * _UNITS[found[2]] if found else 0
    if not SMALLEST <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"expected a number of bytes from 64K to 1024G, got {text!r}")
    return value


def duration(text: str) -> float:
    """A time in seconds, as in 10s or 5m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    seconds = float(found[1]) * {"ms": 1e-3, "s": 1, "": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected a time of more than 0, as in 500ms, 10s or 5m, got {text!r}")
    return seconds
