"""DIRTY_PAGES of the draft of January 2021: a log of what the device writes, as VFIO_IOMMU_DIRTY_PAGES had it.

The draft names the command. Its structures are those of linux/vfio.h: vfio_iommu_type1_dirty_bitmap, and for
GET_BITMAP vfio_iommu_type1_dirty_bitmap_get behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import NamedTuple, Protocol

from vfio_user.dialects import DraftCommand
from vfio_user.dma_logging import WORD, LoggedRange, LoggingControl, LoggingReport, check_page_size
from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields
from vfio_user.getters import Reply
from vfio_user.message import Message

HEAD = Fields("<II", "argsz flags")
RANGE = Fields("<QQ", "iova size")
BITMAP = Fields("<QQQ", "pgsize size data")
_NAME = "DIRTY_PAGES"
_PAGE = 4096
_MOST = 1 << 20  # bytes of a bitmap


class DirtyFlags(IntFlag):
    """What to do with the log: exactly one of these."""

    START = 1
    STOP = 2
    GET_BITMAP = 4


class DirtyRequest(NamedTuple):
    """A request. ``report`` and ``room``, in bytes, are those of GET_BITMAP: the bitmap asked for, and its size."""

    flags: DirtyFlags
    report: LoggingReport | None = None
    room: int = 0

    def pack(self) -> bytes:
        """The request's payload."""
        if self.report is None:
            return HEAD.pack(HEAD.size, self.flags)
        size = HEAD.size + RANGE.size + BITMAP.size
        where = RANGE.pack(self.report.iova, self.report.length)
        return HEAD.pack(size, self.flags) + where + BITMAP.pack(self.report.page_size, self.room, 0)

    @classmethod
    def unpack(cls, payload: memoryview) -> DirtyRequest:
        """Decode a request. Raises ProtocolError, which names the field that is wrong."""
        if len(payload) < HEAD.size:
            raise ProtocolError(f"{_NAME}: {len(payload)} bytes, expected at least {HEAD.size}")
        argsz, flags = HEAD.unpack_from(payload)
        if argsz < HEAD.size:
            raise ProtocolError(f"{_NAME}: argsz {argsz}, expected at least {HEAD.size}")
        if flags not in (DirtyFlags.START, DirtyFlags.STOP, DirtyFlags.GET_BITMAP):
            raise ProtocolError(f"{_NAME}: flags {flags:#x}, expected START, STOP or GET_BITMAP")
        if flags != DirtyFlags.GET_BITMAP:
            return cls(DirtyFlags(flags))
        expected = HEAD.size + RANGE.size + BITMAP.size
        if len(payload) < expected:
            raise ProtocolError(f"{_NAME}: {len(payload)} bytes, expected {expected} with GET_BITMAP")
        iova, length = RANGE.unpack_from(payload, HEAD.size)
        page_size, room, _ = BITMAP.unpack_from(payload, HEAD.size + RANGE.size)
        LoggedRange(iova, length).check(_NAME)
        check_page_size(page_size, _NAME)
        report = LoggingReport(iova, length, page_size)
        if not _needed(report) <= room <= _MOST:
            raise ProtocolError(f"{_NAME}: bitmap of {room} bytes, expected {_needed(report)} to {_MOST}")
        return cls(DirtyFlags.GET_BITMAP, report, room)


class Log(Protocol):
    """A log of writes, as DEVICE_FEATURE has it too."""

    def start(self, control: LoggingControl) -> int:
        """Log from now on."""

    def report(self, asked: LoggingReport) -> bytes:
        """The bitmap of the pages that were written since their last report."""

    def stop(self) -> None:
        """Log nothing more."""


def answer_dirty_pages(message: Message, log: Log) -> Reply:
    """How a server answers. Raises VfioUserError for what cannot be, and what ``log`` raises."""
    request = DirtyRequest.unpack(message.payload)
    if request.report is not None:
        bitmap = log.report(request.report)[: request.room].ljust(request.room, b"\0")
        return Reply([BITMAP.pack(request.report.page_size, request.room, 0), bitmap])
    if request.flags is DirtyFlags.START:
        log.start(LoggingControl(_PAGE))
    else:
        log.stop()
    return Reply()


class DraftDirtyPages:
    """The client's side, with the methods of :class:`~vfio_user.client_dirty.ClientDirtyPages`."""

    def __init__(self, request: Callable[..., bytes], most: int) -> None:
        self._request = request
        self._most = min(most - BITMAP.size, _MOST)

    def start(self, ranges: Sequence[tuple[int, int]], page_size: int) -> int:
        """Log writes to all memory: this dialect names no ``ranges``. Returns ``page_size``."""
        del ranges
        check_page_size(page_size, _NAME)
        self._ask(DirtyRequest(DirtyFlags.START))
        return page_size

    def report(self, iova: int, length: int, page_size: int) -> bytes:
        """The bitmap of ``length`` bytes at ``iova``, asked for in parts if it is large."""
        LoggedRange(iova, length).check(_NAME)
        check_page_size(page_size, _NAME)
        step = max(1, self._most * 8 // WORD) * WORD * page_size
        parts = (LoggingReport(at, min(step, iova + length - at), page_size) for at in range(iova, iova + length, step))
        return b"".join(map(self._part, parts))

    def stop(self) -> None:
        """Log nothing more, and forget what was logged."""
        self._ask(DirtyRequest(DirtyFlags.STOP))

    def _part(self, part: LoggingReport) -> bytes:
        reply = self._ask(DirtyRequest(DirtyFlags.GET_BITMAP, part, part.bitmap_size))
        bitmap = reply[BITMAP.size :]
        if len(bitmap) != part.bitmap_size:
            raise ProtocolError(f"{_NAME} reply: bitmap of {len(bitmap)} bytes, expected {part.bitmap_size}")
        return bitmap

    def _ask(self, request: DirtyRequest) -> bytes:
        return self._request(DraftCommand.DIRTY_PAGES, request.pack())


def _needed(report: LoggingReport) -> int:
    """The least bytes of a bitmap: a bit for each page."""
    return -(-report.length // (8 * report.page_size))
