"""The client's side of DMA logging: which pages of its memory the device has written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vfio_user.constants import Feature, FeatureFlags
from vfio_user.dma_logging import CONTROL, REPORT, WORD, LoggedRange, LoggingControl, LoggingReport, check_page_size
from vfio_user.errors import ProtocolError
from vfio_user.features import FEATURE, DeviceFeature


class ClientDirtyPages:
    """The log of what a client's device writes: ``client.dirty``. Each call raises what :class:`Client` says of calls.

    A log has the writes of the device alone, and those of the guest's processors are the hypervisor's to log.
    """

    def __init__(self, feature: Callable[..., DeviceFeature], most: int) -> None:
        self._feature = feature
        self._most = most

    def start(self, ranges: Sequence[tuple[int, int]], page_size: int) -> int:
        """DMA_LOGGING_START: log writes to ``ranges``, pairs of address and length in bytes; all memory without any.

        Returns the page size that the server has chosen. It may differ from ``page_size``, a power of two.
        """
        check_page_size(page_size, Feature.DMA_LOGGING_START.name)
        request = LoggingControl(page_size, tuple(LoggedRange(*each) for each in ranges)).pack()
        answer = self._feature(FeatureFlags.SET, Feature.DMA_LOGGING_START, request)
        if len(answer.data) < CONTROL.size:
            raise ProtocolError(f"DMA_LOGGING_START reply: {len(answer.data)} bytes, expected {len(request)}")
        chosen: int = CONTROL.unpack_from(answer.data)[0]
        check_page_size(chosen, "DMA_LOGGING_START reply")
        return chosen

    def report(self, iova: int, length: int, page_size: int) -> bytes:
        """DMA_LOGGING_REPORT: which pages of ``length`` bytes at ``iova`` were written since their last report.

        Bit n of the bitmap (of its byte n // 8: its words are little-endian) is the page at ``iova + n * page_size``.
        A range whose bitmap does not fit into a message is asked for in parts.
        """
        LoggedRange(iova, length).check(Feature.DMA_LOGGING_REPORT.name)
        check_page_size(page_size, Feature.DMA_LOGGING_REPORT.name)
        room = self._most - FEATURE.size - REPORT.size
        step = max(1, room * 8 // WORD) * WORD * page_size
        return b"".join(
            self._part(LoggingReport(at, min(step, iova + length - at), page_size))
            for at in range(iova, iova + length, step)
        )

    def _part(self, part: LoggingReport) -> bytes:
        argsz = FEATURE.size + REPORT.size + part.bitmap_size
        answer = self._feature(FeatureFlags.GET, Feature.DMA_LOGGING_REPORT, part.pack(), argsz)
        bitmap = answer.data[REPORT.size :]
        if len(bitmap) != part.bitmap_size:
            raise ProtocolError(f"DMA_LOGGING_REPORT reply: bitmap of {len(bitmap)} bytes, expected {part.bitmap_size}")
        return bitmap

    def stop(self) -> None:
        """DMA_LOGGING_STOP: log nothing more, and forget what was logged."""
        self._feature(FeatureFlags.SET, Feature.DMA_LOGGING_STOP, LoggingControl(0).pack())
