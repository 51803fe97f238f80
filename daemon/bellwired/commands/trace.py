"""``bellwire trace``: what happens between a guest and its device, event by event."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from rich.text import Text

from bellwire.filters.observing.event_ring import RingReader
from bellwire.filters.observing.record import KINDS, Record
from bellwire.filters.observing.selection import Selection
from bellwired import terminal
from bellwired.commands import show
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.control_client import call
from bellwired.commands.operate import instance

EVERY = 0.05  # seconds between two looks at the ring
STYLES = {"time": "dim", "kind": "cyan", "name": "bold", "value": "green", "meaning": "yellow", "where": "dim"}
FAILED = "red"


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command; ``shared`` has the flags of all commands that ask a daemon."""
    about = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    parser = commands.add_parser(
        "trace",
        parents=[shared],
        help="show each access, ring, DMA and interrupt of a running device, decoded",
        description="Show each access, ring, DMA, interrupt and hook of a running device, decoded, until Ctrl-C. The "
        f"device's guest does not notice, but for the time that it takes. Kinds of events are {about}.",
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.add_argument(
        "--only",
        default="",
        metavar="TERMS",
        help="only these events: kinds, names and patterns with commas between them (mmio.status,irq,sq*)",
    )
    parser.add_argument("--not", dest="without", default="", metavar="TERMS", help="not these (config,hook)")
    parser.add_argument(
        "--rate", type=_count, metavar="N", help="at most N events a second; what is left out is counted"
    )
    parser.add_argument(
        "--last",
        type=_count,
        metavar="N",
        help="print the last N events of the filter trace that the device has already, and end",
    )
    parser.add_argument(
        "--ended",
        action="store_true",
        help="with --last: the last events of the worker that ended before the present one, as by a crash",
    )
    parser.set_defaults(command=trace, mistake=parser.error)


def trace(arguments: argparse.Namespace) -> int:
    """``bellwire trace NAME``."""
    if arguments.last is not None and arguments.rate is not None:
        arguments.mistake("--rate is not for --last, which prints what the device's own trace has kept")
    if arguments.ended and arguments.last is None:
        arguments.mistake("--ended is for --last")
    begin = arguments.last is None
    printer = Printer(in_json=arguments.json, gaps=begin)
    left: BaseException | None = None

    async def work(daemon: Any) -> None:
        nonlocal left
        terms = {"only": arguments.only, "without": arguments.without, "rate": arguments.rate}
        replies = daemon.Trace(name=arguments.name, **terms, begin=begin, ended=arguments.ended)
        with opened(await anext(replies)) as reader:
            try:
                if begin:
                    if not arguments.json:
                        print(terminal.line(f"tracing {arguments.name}; Ctrl-C ends it"), file=sys.stderr, flush=True)
                    await follow(reader, printer, replies)
                else:
                    selection = Selection(arguments.only, arguments.without)
                    kept = [(number, record) for number, record in reader.after(0) if record in selection]
                    printer.print(iter(kept[-arguments.last :]))
                    if not kept:
                        print(terminal.line(f"no such event among the last {reader.latest}"), file=sys.stderr)
            except (BrokenPipeError, SystemExit) as error:  # from print and rich: nobody reads the output
                left = error

    call(instance(arguments), work, arguments.name, endless=True)
    if left is not None:
        raise left
    if arguments.last is None:
        print(terminal.line(f"{arguments.name} has ended, and its trace with it"), file=sys.stderr)
    return 0


class Prints(Protocol):
    """Whoever takes the records of a trace."""

    def print(self, records: Iterator[tuple[int, Record]], after: int = 0) -> int:
        """Take records. ``after`` and the result are numbers of a last record."""


async def follow(reader: RingReader, printer: Prints, replies: AsyncIterator[Any]) -> None:
    """Print what comes, until the daemon says by another reply that the trace has ended."""

    async def end() -> None:
        await anext(replies, None)

    ended = asyncio.create_task(end())
    number = 0
    try:
        over = False
        while not over:
            over = ended.done()
            number = printer.print(reader.after(number), number)
            await asyncio.wait([ended], timeout=EVERY)
        await ended
    finally:
        ended.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ended


@contextlib.contextmanager
def opened(reply: Any) -> Iterator[RingReader]:
    """A reader of the ring that came with a reply. It maps the ring, so the descriptor is closed at once."""
    with reply as given:
        reader = RingReader(given["events"].fileno())
    try:
        yield reader
    finally:
        reader.close()


class Printer:
    """Prints records: lines for people, JSON for programs. ``gaps``: people are told how many are missing."""

    def __init__(self, *, in_json: bool = False, gaps: bool = True) -> None:
        self._json = in_json
        self._gaps = gaps and not in_json
        self._out = show.console()

    def print(self, records: Iterator[tuple[int, Record]], after: int = 0) -> int:
        """Print records, and how many are missing between them. Returns the number of the last one."""
        for number, record in records:
            if after and number > after + 1 and self._gaps:
                self._out.print(Text(f"({number - after - 1} events came too fast to be read)", "red"))
            after = number
            if self._json:
                print(terminal.json_text({"number": number} | as_dict(record)))
            else:
                self._out.print(as_text(record))
        sys.stdout.flush()
        return after


def as_dict(record: Record) -> dict[str, Any]:
    """A record for programs, without the fields that it has not."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return {
        name: value
        for name, value in fields.items()
        if value not in ("", None, 0.0) or (name == "value" and value == 0)
    }


def as_text(record: Record) -> Text:
    """A record for people. Text of a device's author controls nothing."""
    line = Text()
    for part, text in record.pieces():
        style = FAILED if part == "detail" and text.lstrip().startswith("!") else STYLES.get(part, "")
        line.append(terminal.line(text), style)
    line.rstrip()
    return line


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of events, got {text!r}")
    return int(text)
