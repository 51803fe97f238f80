"""``bellwire run`` of a file with several functions: a process for each, all in the foreground.

The command forks once for each function. Each process serves one function, as if the user had started it alone: with
its own socket, its own box, and a name that other commands find. The first process only watches over them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bellwire import PciDevice
from bellwired import terminal
from bellwired.commands import attach
from bellwired.commands.capture import numbered
from bellwired.errors import CommandError
from bellwired.listen import default_path
from bellwired.signals import signal_name
from bellwired.workers.process import end_with_parent

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("bellwire")


class Part:
    """One function, in a process of its own: its name, its socket's path, and the arguments to serve it with."""

    def __init__(self, arguments: argparse.Namespace, name: str, number: int, kind: type[PciDevice]) -> None:
        self.kind = kind
        self.name = f"{name}.{number}"
        self.path = default_path(self.name)
        if arguments.socket_path is not None:
            self.path = Path(f"{arguments.socket_path}.{number}")
        self.arguments = copy.copy(arguments)
        self.arguments.device = f"{arguments.device}:{number}"
        self.arguments.name = self.name
        self.arguments.socket_path = self.path
        self.arguments.options = [text for text in arguments.options if text.partition("=")[0] in kind.layout.options]
        for flag in ("capture", "timeline", "record"):
            if (path := getattr(arguments, flag)) is not None:
                setattr(self.arguments, flag, numbered(path, number))
        self.ready = -1
        """A pipe, by which the function's process tells the first one that it is ready."""

    def tell_ready(self) -> None:
        """Tell the first process that the function's socket listens."""
        os.write(self.ready, b".")


def check(arguments: argparse.Namespace, kinds: Sequence[type[PciDevice]]) -> None:
    """Raise a CommandError for what several functions cannot share."""
    for flag, given in (("--fd", arguments.fd is not None), ("--debug", arguments.debug)):
        if given:
            raise CommandError(f"{flag} is for one function", f"say which: {arguments.device}:0, for example")
    known = {name for kind in kinds for name in kind.layout.options}
    for text in arguments.options:
        key, equals, _ = text.partition("=")
        if equals and key not in known:
            raise CommandError(f"-o {text}: no function has an option {key}", f"they have {_words(known)}")


def split(arguments: argparse.Namespace, kinds: Sequence[type[PciDevice]]) -> Part | int:
    """Fork for each function. In its process, returns the part to serve; in the first one, the exit status at the end.

    When a function fails, the others are ended too. One that is stopped leaves them alone.
    """
    check(arguments, kinds)
    name = arguments.name or Path(arguments.device).stem
    parts = [Part(arguments, name, number, kind) for number, kind in enumerate(kinds)]
    accelerated_by = attach.accelerators() if arguments.ready_fd is None else []
    sys.stdout.flush()
    parent = os.getpid()
    running: dict[int, Part] = {}
    for part in parts:
        part.ready, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            for each in running.values():
                os.close(each.ready)
            os.close(part.ready)
            part.ready = writing
            if arguments.ready_fd is not None:
                os.close(arguments.ready_fd)
            os.setsid()  # Ctrl-C reaches the first process, which ends this one once
            end_with_parent(parent)
            return part
        os.close(writing)
        running[pid] = part
    return _watch(running, parts, accelerated_by, arguments.ready_fd)


def _watch(running: dict[int, Part], parts: Sequence[Part], accelerated_by: list[str], ready_fd: int | None) -> int:
    """Print how to attach the functions once all are ready, and wait for their ends."""
    asked: set[int] = set()

    def end(*signalled: object) -> None:
        """Ask the functions to end. A second signal of the user's reaches them, too: it ends them at once."""
        for pid in running:
            if signalled or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    for number in _SIGNALS:
        signal.signal(number, end)
    ready = [_is_ready(part) for part in parts]
    if all(ready):
        if ready_fd is None:
            _announce(parts, accelerated_by)
        else:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
    status = 0
    while running:
        pid, wait_status = os.waitpid(-1, 0)
        part = running.pop(pid, None)
        code = os.waitstatus_to_exitcode(wait_status)
        if part is None or not code or (pid in asked and code == -signal.SIGTERM):
            continue
        if code < 0:
            log.error("%s was ended by %s", part.name, signal_name(-code))
        status = status or max(code, 1)
        end()
    return status


def _is_ready(part: Part) -> bool:
    """Wait until the function is served (True), or its process has ended."""
    try:
        select.select([part.ready], [], [])
        return os.read(part.ready, 1) != b""
    finally:
        os.close(part.ready)


def _announce(parts: Sequence[Part], accelerated_by: list[str]) -> None:
    for part in parts:
        print(f"{terminal.line(part.name)}: {terminal.line(part.kind.name)}, serving on {terminal.line(part.path)}")
    print(f"To attach them to QEMU ({attach.OLDEST} or newer), as the functions of one slot:")
    print(f"  {terminal.line(attach.qemu_command([part.path for part in parts], accelerated_by, slot=attach.SLOT))}")
    if "kvm" not in accelerated_by:
        print(attach.WHY_TCG)
    names = f"{parts[0].name} to {parts[-1].name}"
    print(
        terminal.line(
            f"From elsewhere: bellwire status {parts[0].name}, for example. They are {names}. Ctrl-C ends all."
        )
    )
    sys.stdout.flush()


def _words(options: set[str]) -> str:
    return ", ".join(sorted(options)) or "none"
