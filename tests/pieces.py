"""Guest memory that is mapped in pieces, as a client does behind an IOMMU."""

from __future__ import annotations

import itertools
import mmap
import os
import random
from collections.abc import Iterable
from typing import Any

from bellwire.testing import Guest
from vfio_user import DmaFlags, DmaMap

PAGE = 4096


def cut(guest: Guest[Any], pages: Iterable[int], *, shuffle: int | None = None) -> memoryview:
    """Map the guest's memory anew, cut before each of ``pages``; its memory, which is another view from now on.

    With ``shuffle``, which seeds it, pieces that follow each other no longer do so in the file, and what was written
    before may be anywhere.
    """
    size = len(guest.memory)
    bounds = sorted({0, size // PAGE, *(page for page in pages if 0 < page < size // PAGE)})
    pieces = [(first * PAGE, (last - first) * PAGE) for first, last in itertools.pairwise(bounds)]
    order = list(pieces)
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    table, offset = guest._dma, 0
    table.clear()
    for address, length in order:
        flags = DmaFlags.READ | DmaFlags.WRITE
        table.map(DmaMap(flags, offset, address, length), os.dup(guest._memory_fd))
        offset += length
    guest.device.dma.changed()
    plain = memoryview(mmap.mmap(guest._memory_fd, size))
    view = plain if shuffle is None else table.whole(0, size, write=True)
    assert view is not None
    guest.memory = view
    return view
