"""QEMU with our devices in it: an emulated PC (TCG, q35), its memory in a file that it shares with them, or not."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from attached import end, with_us
from bellwired.guest.board import bare
from bellwired.guest.toolbox import Toolbox


class Attachable(Protocol):
    """What QEMU can be given as a device."""

    @property
    def argument(self) -> str:
        """QEMU's ``-device`` for it."""


def attach(devices: Iterable[Attachable]) -> list[str]:
    """Arguments that attach devices."""
    return [word for device in devices for word in ("-device", device.argument)]


@contextlib.contextmanager
def qemu(tools: Toolbox, folder: Path, *arguments: str, talk: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU with no device but the board's own; ``talk`` makes pipes of its standard input and output.

    What it complains about is in the file ``qemu`` of ``folder``. It ends with the block.
    """
    words = [*bare(tools.qemu), *arguments]
    pipe = subprocess.PIPE if talk else None
    with (
        (folder / "qemu").open("wb") as log,
        subprocess.Popen(
            with_us(words),
            env=tools.qemu_environment,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or log,
            stderr=log,
            bufsize=0,
        ) as process,
    ):
        try:
            yield process
        finally:
            end(process)
