"""Page tables that map addresses one to one, for the first instructions of a guest (Intel SDM vol. 3, 4.5)."""

from __future__ import annotations

import struct

from bellwire_vmm.machine.memory import PAGE, GuestMemory
from bellwire_vmm.machine.windows import HIGH_MEMORY

ROOT = 0x1000
"""The value of CR3: the address of the top page table."""

MAPPED = (range(4 << 30), range(HIGH_MEMORY.start, HIGH_MEMORY.start + (4 << 30)))
"""The addresses that are mapped, in 2 MiB pages: some KVMs have no pages of 1 GiB."""

_DIRECTORIES, _TABLES = (0x2000, 0x3000), (0x6000, 0xA000)
_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_LARGE_PAGE, _GIB = 2 << 20, 1 << 30


def write_page_tables(memory: GuestMemory) -> None:
    """Map everything in `MAPPED` readable, writable, executable, and open to ring 3. The tables end at 0xe000."""
    entries = _PRESENT | _WRITABLE | _USER
    for window, directory, first in zip(MAPPED, _DIRECTORIES, _TABLES, strict=True):
        tables = range(first, first + len(window) // _GIB * PAGE, PAGE)
        write_words(memory, ROOT + 8 * (window.start >> 39), [directory | entries])
        write_words(memory, directory + 8 * (window.start // _GIB % 512), [table | entries for table in tables])
        pages = range(window.start, window.stop, _LARGE_PAGE)
        write_words(memory, first, [page | entries | _LARGE for page in pages])


def write_words(memory: GuestMemory, address: int, words: list[int]) -> None:
    """The bytes of these 64-bit words, in order."""
    memory.write(address, struct.pack(f"<{len(words)}Q", *words))
