"""The server's side of DMA logging: which pages of a client's memory the device has written.

Memory that the client shares is watched by the kernel (:mod:`vfio_user.written_pages`), so the paths by which a device
writes it are the same with a log and without. What goes by DMA_WRITE is noted here, and so is what was written to
memory that the client has taken back since.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfio_user.constants import Feature
from vfio_user.dma import DmaTable, MappedRange
from vfio_user.dma_logging import LoggedRange, LoggingControl, LoggingReport, check_page_size, mark
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.mapping import Pages
from vfio_user.stretches import Stretches
from vfio_user.written_pages import PAGE, WrittenPages

MOST_RANGES = 1024
MOST_WATCHED = 1 << 40
"""Bytes of memory that the kernel watches: it takes 2 MiB of page tables for each GiB, even if that is never used."""
_ALL = LoggedRange(0, 1 << 64)
_KEY = "dma log"


class DirtyPages:
    """The log of one session. ``settle`` waits until nothing that the device has begun may still write.

    It is a :class:`~vfio_user.dma.MapLog` of ``table`` while it is on.
    """

    def __init__(
        self,
        table: DmaTable,
        settle: Callable[[], None],
        ledger: Ledger,
        watch: Callable[[], WrittenPages] = WrittenPages,
    ) -> None:
        self._table = table
        self._settle = settle
        self._ledger = ledger
        self._new = watch
        self._pages: WrittenPages | None = None
        self._ranges = Stretches()
        self._found = Stretches()
        self._blind: set[MappedRange] = set()  # memory that the kernel does not watch: always reported
        self._watched = 0
        self._joined: dict[tuple[int, int], Pages] = {}  # a log outlives the views that device code drops

    @property
    def on(self) -> bool:
        """Whether writes are logged."""
        return self._pages is not None

    def check(self) -> None:
        """Raise VfioUserError (ENOTSUP) if writes cannot be logged here."""
        if self._table.kept is not None:
            why = "DMA_LOGGING_START: this device hands guest memory to another process, whose writes nobody sees"
            raise VfioUserError(why, errno.ENOTSUP)
        if self._pages is None:
            self._new().close()

    def start(self, control: LoggingControl) -> int:
        """Log from now on. Returns the page size that is used: no smaller than the processor's.

        Raises VfioUserError: EBUSY if the log is on, ENOTSUP as :meth:`check`, EINVAL for ranges that cannot be.
        """
        name = Feature.DMA_LOGGING_START.name
        if self.on:
            raise VfioUserError(f"{name}: the log is on already", errno.EBUSY)
        check_page_size(control.page_size, name)
        if len(control.ranges) > MOST_RANGES:
            raise ProtocolError(f"{name}: num_ranges {len(control.ranges)}, at most {MOST_RANGES} expected")
        self.check()
        self._begin(control)
        note = {"page_size": control.page_size, "ranges": [list(each) for each in control.ranges]}
        self._ledger.keep(Kept(_KEY, note))
        return max(PAGE, control.page_size)

    def _begin(self, control: LoggingControl) -> None:
        self._pages = self._new()
        for each in control.ranges or (_ALL,):
            self._ranges.add(each.iova, each.iova + each.length)
        self._table.log = self
        for mapped in self._table:
            self.mapped(mapped)
        for (start, _), pages in self._table.joined():
            self.joined(start, pages)

    def stop(self) -> None:
        """Log nothing more, and forget what was logged. Nothing happens if the log is off."""
        if self._pages is not None:
            self._ledger.drop(_KEY)
            self.close()

    def close(self) -> None:
        """Log nothing more in this process. A successor goes on with the log."""
        if self._pages is None:
            return
        self._table.log = None
        self._pages.close()
        self._pages = None
        self._ranges, self._found = Stretches(), Stretches()
        self._blind.clear()
        self._joined.clear()
        self._watched = 0

    def take_over(self, estate: Estate) -> None:
        """Go on with the log of a process that has ended. What that has seen is lost: all counts as written."""
        if _KEY not in estate:
            return
        note = estate.note(_KEY)
        try:
            self._begin(LoggingControl(note["page_size"], tuple(LoggedRange(*each) for each in note["ranges"])))
        except VfioUserError:
            self._ledger.drop(_KEY)  # the client learns it from its next report
        for start, end in self._ranges:
            self._found.add(start, end)

    def report(self, asked: LoggingReport) -> bytes:
        """The bitmap of the pages that were written since the last report of them. They are forgotten.

        Raises VfioUserError if the log is off, or if part of the range is not logged.
        """
        name, end = Feature.DMA_LOGGING_REPORT.name, asked.iova + asked.length
        if self._pages is None:
            raise VfioUserError(f"{name}: the log is off: DMA_LOGGING_START comes first")
        if not self._ranges.covers(asked.iova, end):
            raise VfioUserError(f"{name}: {asked.iova:#x}+{asked.length:#x} is not all in what is logged")
        self._settle()
        self._look(self._pages, asked.iova, end)
        bitmap = bytearray(asked.bitmap_size)
        for low, high in self._found.take(asked.iova, end):
            mark(bitmap, (low - asked.iova) // asked.page_size, (high - 1 - asked.iova) // asked.page_size)
        return bytes(bitmap)

    def _look(self, pages: WrittenPages, start: int, end: int) -> None:
        """Find what was written to the memory that is mapped now."""
        for mapped in self._table:
            if mapped.start < end and start < mapped.end:
                self._scan(pages, mapped)
        for (first, last), joined in self._joined.items():
            if first < end and start < last:
                self._scan_joined(pages, first, joined)

    def _scan(self, pages: WrittenPages, mapped: MappedRange) -> None:
        mapping = mapped.mapping
        if mapped in self._blind:
            self._found.add(mapped.start, mapped.end)
        elif mapping is not None and mapping.write:
            for low, high in pages.take(*mapping.whole):  # a huge page is protected as a whole, or not at all
                first, last = mapped.start + low - mapping.address, mapped.start + high - mapping.address
                self._found.add(max(first, mapped.start), min(last, mapped.end))

    def _scan_joined(self, pages: WrittenPages, start: int, joined: Pages) -> None:
        for low, high in pages.take(joined.address, joined.size):
            self._found.add(start + low - joined.address, start + high - joined.address)

    # -- what happens meanwhile

    def wrote(self, address: int, size: int) -> None:
        """The device has written by DMA_WRITE."""
        if self._pages is not None:
            self._found.add(address, address + size)

    def mapped(self, mapped: MappedRange) -> None:
        """The client has mapped memory."""
        mapping = mapped.mapping
        if self._pages is None or mapping is None or not mapping.write:
            return
        if self._watched + mapping.size <= MOST_WATCHED and self._pages.protect(*mapping.whole):
            self._watched += mapping.size
        else:
            self._blind.add(mapped)

    def unmapped(self, mapped: MappedRange) -> None:
        """The client is about to take memory back."""
        if self._pages is not None:
            self._scan(self._pages, mapped)
            if mapped in self._blind:
                self._blind.remove(mapped)
            elif mapped.mapping is not None and mapped.mapping.write:
                self._watched -= mapped.mapping.size
                self._pages.release(*mapped.mapping.whole)

    def joined(self, start: int, pages: Pages) -> None:
        """Pieces of memory, from the client's address ``start`` on, were mapped a second time."""
        if self._pages is not None:
            self._joined[start, start + pages.size] = pages
            if not self._pages.protect(pages.address, pages.size):
                self._found.add(start, start + pages.size)

    def parted(self, start: int, pages: Pages) -> None:
        """Such a mapping is about to go."""
        if self._pages is not None and self._joined.pop((start, start + pages.size), None) is not None:
            self._scan_joined(self._pages, start, pages)
            self._pages.release(pages.address, pages.size)
