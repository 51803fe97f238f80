"""Folders chosen by what their file system can do: the temporary one may lie in memory (tmpfs)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BUILD = Path(__file__).parent.parent / "build"
ELSEWHERE = (BUILD, Path("/var/tmp"))
HUGE = 1 << 62


def has_a_medium(folder: Path) -> bool:
    """Whether reads can pass the page cache by (O_DIRECT) and can fail rather than wait (RWF_NOWAIT)."""
    trial = folder / "trial"
    trial.write_bytes(bytes(4096))
    try:
        os.close(os.open(trial, os.O_RDONLY | os.O_DIRECT))
        with trial.open("rb", buffering=0) as file, contextlib.suppress(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        return False
    finally:
        trial.unlink()
    return True


def limits_sizes(folder: Path) -> bool:
    """Whether a file of 4 EiB is too large for it, be it all holes."""
    trial = folder / "trial"
    try:
        with trial.open("wb") as file:
            file.truncate(HUGE)
    except OSError:
        return True
    finally:
        trial.unlink()
    return False


@contextlib.contextmanager
def folder_that(can: Callable[[Path], bool], first: Path) -> Iterator[Path]:
    """``first`` if it can, or a new folder elsewhere, which is gone afterwards; skips the test where there is none."""
    if can(first):
        yield first
        return
    BUILD.mkdir(exist_ok=True)
    for parent in ELSEWHERE:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            if can(Path(folder)):
                yield Path(folder)
                return
    pytest.skip(f"no file system for it: {(can.__doc__ or '').strip()}")
