"""The file of ``--console``, which takes what a guest's kernel prints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bellwire.paths import WRITABLE, Place


@contextlib.contextmanager
def console_file(path: Path, note: Callable[[str], object]) -> Iterator[Callable[[bytes], None]]:
    """Open the file, and write to it until it takes no more. That is noted once, and the rest is dropped."""
    with Place(path) as place:
        fd = place.open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, WRITABLE)
    with open(fd, "wb", buffering=0) as file:
        failed = False

        def take(data: bytes) -> None:
            nonlocal failed
            if failed:
                return
            try:
                file.write(data)
            except OSError as error:
                failed = True
                note(f"{path}: {error.strerror}: it has no more of what the guest's kernel prints")

        yield take
