"""The data of DMA_LOGGING_START and DMA_LOGGING_REPORT: ranges of addresses, and bitmaps of written pages."""

from __future__ import annotations

from typing import NamedTuple

from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

CONTROL = Fields("<QII", "page_size num_ranges reserved")
RANGE = Fields("<QQ", "iova length")
REPORT = Fields("<QQQ", "iova length page_size")
WORD = 64
"""Pages in a word of a bitmap."""
_TOP = 1 << 64


class LoggedRange(NamedTuple):
    """Addresses whose pages are logged: ``length`` bytes at ``iova``."""

    iova: int
    length: int

    def check(self, what: str) -> None:
        """Raise ProtocolError, which says that it is in ``what``, if there are no such addresses."""
        if self.iova < 0 or self.length <= 0 or self.iova + self.length > _TOP:
            raise ProtocolError(f"{what}: range {self.iova:#x}+{self.length:#x} is empty or wraps around")


class LoggingControl(NamedTuple):
    """The data of DMA_LOGGING_START, and of DMA_LOGGING_STOP. Without ranges, all addresses are meant."""

    page_size: int
    ranges: tuple[LoggedRange, ...] = ()

    def pack(self) -> bytes:
        """The data."""
        return CONTROL.pack(self.page_size, len(self.ranges), 0) + b"".join(RANGE.pack(*each) for each in self.ranges)

    @classmethod
    def unpack(cls, data: bytes, what: str) -> LoggingControl:
        """Decode the data of ``what``. Raises ProtocolError, which names the field that is wrong."""
        if len(data) < CONTROL.size:
            raise ProtocolError(f"{what}: {len(data)} bytes, expected at least {CONTROL.size}")
        page_size, count, _ = CONTROL.unpack_from(data)
        if count * RANGE.size > len(data) - CONTROL.size:
            raise ProtocolError(f"{what}: num_ranges {count} in {len(data)} bytes")
        end = CONTROL.size + count * RANGE.size
        ranges = tuple(LoggedRange(*each) for each in RANGE.iter_unpack(data[CONTROL.size : end]))
        for each in ranges:
            each.check(what)
        return cls(page_size, ranges)


class LoggingReport(NamedTuple):
    """The data of a DMA_LOGGING_REPORT request; in the reply, the bitmap follows."""

    iova: int
    length: int
    page_size: int

    def pack(self) -> bytes:
        """The data of the request."""
        return REPORT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, what: str) -> LoggingReport:
        """Decode the data of ``what``. Raises ProtocolError, which names the field that is wrong."""
        if len(data) < REPORT.size:
            raise ProtocolError(f"{what}: {len(data)} bytes, expected at least {REPORT.size}")
        report = cls(*REPORT.unpack_from(data))
        LoggedRange(report.iova, report.length).check(what)
        check_page_size(report.page_size, what)
        return report

    @property
    def bitmap_size(self) -> int:
        """The bytes of the bitmap: a bit for each page, in words of 64 bits."""
        return bitmap_size(self.length, self.page_size)


def check_page_size(page_size: int, what: str) -> None:
    """Raise ProtocolError, which says that it is in ``what``, if ``page_size`` is no power of two."""
    if page_size <= 0 or page_size & (page_size - 1):
        raise ProtocolError(f"{what}: page_size {page_size:#x}, expected a power of two")


def bitmap_size(length: int, page_size: int) -> int:
    """The bytes of a bitmap for ``length`` bytes of memory."""
    pages = -(-length // page_size)
    return -(-pages // WORD) * (WORD // 8)


def mark(bitmap: bytearray, first: int, last: int) -> None:
    """Set the bits ``first`` to ``last`` of a bitmap."""
    start, end = first // 8, last // 8
    head, tail = 0xFF << first % 8 & 0xFF, 0xFF >> 7 - last % 8
    if start == end:
        bitmap[start] |= head & tail
        return
    bitmap[start] |= head
    bitmap[start + 1 : end] = b"\xff" * (end - start - 1)
    bitmap[end] |= tail
