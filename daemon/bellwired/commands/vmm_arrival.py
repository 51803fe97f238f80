"""Where the guest of ``bellwire vmm --restore`` or ``--listen`` comes from: a file, or another process."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellwire.paths import PathError, open_file
from bellwire.unix_sockets import check_peer
from bellwire_vmm.errors import VmmError
from bellwire_vmm.moving import Target
from bellwire_vmm.moving.wire import PATIENCE
from bellwire_vmm.saved import devices
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.saved.file import SavedFile
from bellwire_vmm.vmm import Machine
from bellwired.commands.vmm_signals import signals_end_it
from bellwired.errors import CommandError
from bellwired.listen import listening

_MIB = 1 << 20
LINUX = "linux"
"""What a guest with a board is called."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A guest that comes: what its machine looked like, and how a machine like that gets it.

    ``take`` gives a machine, whose devices are plugged in, the guest's RAM and state, and starts the devices. It
    returns what that has cost, in words.
    """

    shape: dict[str, Any]
    take: Callable[[Machine], str]

    @property
    def guest(self) -> str:
        """The name of a micro guest, or LINUX."""
        return str(self.shape.get("guest", ""))

    @property
    def memory(self) -> int:
        """Bytes of RAM."""
        return int(self.shape["memory"])

    @property
    def cpus(self) -> int:
        """The number of vCPUs."""
        return int(self.shape["cpus"])


@contextlib.contextmanager
def arrival(arguments: argparse.Namespace) -> Iterator[Arrival]:
    """Open the file, or wait for the other process. Raises CommandError for what is no machine."""
    if arguments.restore:
        with _restored(arguments.restore) as found:
            yield found
    else:
        with _moved(arguments.listen, arguments.timeout) as found:
            yield found


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[Arrival]:
    with _named(path):
        fd = open_file(path)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        with _named(path):
            kept = SavedFile(fd)

        def take(machine: Machine) -> str:
            begin = time.monotonic()
            with _named(path):
                saved.check(machine, kept.shape)
                devices.check(machine)
                kept.load(machine.memory)
                loaded = time.monotonic()
                saved.give(machine, kept.state)
                devices.start(machine)
            end = time.monotonic()
            return (
                f"was restored from {path}: {kept.used / _MIB:.1f} MiB of RAM in {loaded - begin:.3f} s, "
                f"the rest in {end - loaded:.3f} s"
            )

        yield Arrival(kept.shape, take)


@contextlib.contextmanager
def _moved(path: Path, timeout: float | None) -> Iterator[Arrival]:
    with signals_end_it(), listening(path) as listener:
        print(f"Waiting for a guest at {path}", file=sys.stderr, flush=True)
        target = _first(listener, path, timeout)
    with contextlib.ExitStack() as stack:
        stack.callback(target.close)

        def take(machine: Machine) -> str:
            with _named(path):
                target.take(machine)
            return f"came by {path}: {target.received / _MIB:.1f} MiB of RAM"

        try:
            yield Arrival(target.shape, take)
        except BaseException as error:
            target.refuse(str(error) or type(error).__name__)
            raise


def _first(listener: socket.socket, path: Path, timeout: float | None) -> Target:
    """The first who has a guest. Others are told of, and forgotten: a probe, or somebody who must not come here.

    Raises CommandError if nobody has one within ``timeout`` seconds.
    """
    deadline = time.monotonic() + (timeout or math.inf)
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left if timeout else None)
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            break
        try:
            check_peer(sock, path)
            return Target(sock, min(deadline - time.monotonic(), PATIENCE))
        except (VmmError, PathError) as error:
            sock.close()
            print(f"bellwire: {path}: {error}; waiting for another", file=sys.stderr, flush=True)
    raise CommandError(f"{path}: no guest came within {timeout:g} s")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the path in errors."""
    try:
        yield
    except VmmError as error:
        raise CommandError(f"{path}: {error}") from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}", getattr(error, "hint", "")) from None
