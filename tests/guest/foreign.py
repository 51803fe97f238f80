"""Servers that others have written, in processes of their own: their sockets are waited for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attached import end, with_us
from bellwired.guest.toolbox import Toolbox
from rendezvous import listens

PATIENCE = 20.0


@contextlib.contextmanager
def started(words: Sequence[str], path: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens at ``path``; what it says is in ``folder/log``."""
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(with_us([*words]), stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE
            while not listens(path):
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < deadline
                select.select([], [], [], 0.01)
            yield process
        finally:
            end(process)


@contextlib.contextmanager
def served_by_qemu(tools: Toolbox, folder: Path, device: str, *words: str) -> Iterator[Path]:
    """The socket of a device of QEMU's, behind its vfio-user server; ``words`` are more of QEMU's."""
    path = folder / "server"
    served: dict[str, object] = {"qom-type": "x-vfio-user-server", "id": "server", "device": "it"}
    served |= {"socket": {"type": "unix", "path": os.fspath(path)}}
    command = [*tools.qemu, "-machine", "x-remote,vfio-user=on", "-nodefaults", "-display", "none"]
    command += [*words, "-device", f"{device},id=it", "-object", json.dumps(served)]
    with started(command, path, folder):
        yield path
