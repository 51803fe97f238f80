"""The code of a device that a client uses, for a successor whose files cannot be run: an edit that is half saved.

A worker gives its ledger the Python files as it has run them, with the client. A successor takes the files on disk.
Only if these do not run, it takes what was left, in the same box. The manager holds it, and reads nothing of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import msgspec

from bellwire import PciDevice
from bellwire.serve.worker import TRYING
from bellwired import sources
from bellwired.errors import CommandError
from bellwired.find import find_again
from bellwired.sources import Open, Sources, open_trusted
from vfio_user import Estate, Kept

KEY = "code"
MOST_FILES = 256
MOST_BYTES = 4 << 20
"""Of all files together; beyond that, or beyond MOST_FILES, none are kept."""

log = logging.getLogger("bellwire.worker")


class Code:
    """The code that a process runs now, in a memory file that it owns; ``kept`` is the ledger's entry of it."""

    def __init__(self) -> None:
        self.kept: tuple[Kept, ...] = ()
        found = sources.as_run()
        size = sum(len(text) for _, text in found.files.values())
        if size > MOST_BYTES or len(found.files) > MOST_FILES:
            log.warning("%d files of code with %d bytes are not kept for a successor: too much", len(found.files), size)
        elif found.files:
            fd = os.memfd_create("bellwire-code", os.MFD_CLOEXEC)
            with open(fd, "wb", closefd=False) as file:
                file.write(msgspec.msgpack.encode(found))
            self.kept = (Kept(KEY, {}, (fd,)),)

    def close(self) -> None:
        """Close the file. What the ledger has stays."""
        for entry in self.kept:
            for fd in entry.fds:
                os.close(fd)
        self.kept = ()


def left(estate: Estate | None) -> Sources | None:
    """The code that a process before this one has left; None if it has left none that can be used."""
    if estate is None or not (fds := estate.fds(KEY)):
        return None
    size = os.fstat(fds[0]).st_size
    if size > 2 * MOST_BYTES:
        return None
    try:
        return msgspec.msgpack.decode(os.pread(fds[0], size, 0), type=Sources)
    except (msgspec.DecodeError, OSError):
        return None


def why_left(estate: Estate | None) -> str:
    """Why a process that could read newer files is to have the code that was left."""
    if estate is not None and TRYING in estate:
        return "the process that tried them has ended"
    return "it has not got further than its start"


def find_left(
    wanted: str, estate: Estate | None, error: Exception, opened: Open = open_trusted
) -> tuple[Callable[[], type[PciDevice]], str]:
    """What finds the device in the code that was left, and words about it. Raises ``error``, for which it is needed, if
    there is none.
    """
    found = left(estate)
    if found is None:
        raise error
    times = [known[1] for known, _ in found.files.values() if known is not None]
    when = time.strftime("%F %T", time.localtime(max(times, default=0) / 1e9))
    why = error.in_words if isinstance(error, CommandError) else str(error)
    return lambda: find_again(wanted, found, opened), f"its files cannot be run, so it has those of {when}: {why}"
