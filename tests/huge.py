"""Huge pages for tests, on systems that keep none in reserve."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = Path("/proc/sys/vm/nr_overcommit_hugepages")
"""How many huge pages the kernel makes when they are asked for (Documentation/admin-guide/mm/hugetlbpage.rst)."""


@contextmanager
def one_more() -> Iterator[None]:
    """Let the kernel make one more huge page in the block. An OSError for others than root."""
    with LIMIT.open("r+") as limit:
        fcntl.flock(limit, fcntl.LOCK_EX)  # other processes of these tests do the same
        before = limit.read()
        LIMIT.write_text(str(int(before) + 1))
        try:
            yield
        finally:
            LIMIT.write_text(before)


@contextmanager
def huge_page() -> Iterator[int]:
    """A file of one huge page. An OSError if there is none."""
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    try:
        size = os.fstat(fd).st_blksize
        os.ftruncate(fd, size)
        mmap.mmap(fd, size).close()
        yield fd
    finally:
        os.close(fd)
