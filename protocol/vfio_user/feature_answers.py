"""DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE: how a server answers them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from vfio_user import dma_bufs
from vfio_user.constants import Feature, FeatureFlags
from vfio_user.dirty_pages import DirtyPages
from vfio_user.dma_bufs import DmaBufRequest, export
from vfio_user.dma_logging import LoggingControl, LoggingReport
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.features import FEATURE, MIGRATION, STATE, DeviceFeature, unpack_state
from vfio_user.getters import Reply
from vfio_user.message import Message
from vfio_user.migration import DATA, MigrationData, MigrationRead
from vfio_user.regions import Region
from vfio_user.server_migration import ServerMigration

_NONE = errno.ENOTSUP
_GET, _SET = FeatureFlags.GET, FeatureFlags.SET
_METHODS = {
    Feature.MIGRATION: _GET,
    Feature.MIG_DEVICE_STATE: _GET | _SET,
    Feature.DMA_LOGGING_START: _SET,
    Feature.DMA_LOGGING_STOP: _SET,
    Feature.DMA_LOGGING_REPORT: _GET,
    Feature.DMA_BUF: _GET,
}
"""What can be done with each feature."""


class FeatureAnswers:
    """Answers for the migration, the log and the regions of one session.

    ``most`` gives the bytes that a message may move.
    """

    def __init__(
        self, migration: ServerMigration, dirty: DirtyPages, regions: Sequence[Region], most: Callable[[], int]
    ) -> None:
        self._migration = migration
        self._dirty = dirty
        self._regions = regions
        self._most = most

    def feature(self, message: Message) -> Reply:
        """DEVICE_FEATURE. Raises VfioUserError: ENOTSUP for what this device lacks, and as the feature itself says."""
        request = DeviceFeature.unpack(message.payload)
        try:
            feature = Feature(request.feature)
            methods = _METHODS[feature]
        except ValueError:
            raise VfioUserError(f"DEVICE_FEATURE: {request.feature} is no feature of this device", _NONE) from None
        asked = request.flags & (_GET | _SET)
        if asked & ~methods:
            raise VfioUserError(f"DEVICE_FEATURE: {feature.name} has no {(asked & ~methods).name}", _NONE)
        self._check(feature)
        if FeatureFlags.PROBE in request.flags:
            return Reply([request.pack()])
        if asked == _SET:
            return Reply([DeviceFeature(request.flags, feature, self._set(feature, request.data)).pack()])
        if feature is Feature.DMA_BUF:
            fd = export(DmaBufRequest.unpack(request.data), self._regions)
            return Reply([request.pack()], [fd], [fd])
        room = FEATURE.unpack_from(message.payload)[0] - FEATURE.size
        return Reply([DeviceFeature(request.flags, feature, self._get(feature, request.data, room)).pack()])

    def _check(self, feature: Feature) -> None:
        """Raise VfioUserError (ENOTSUP) if this device does not have the feature."""
        if feature in (Feature.MIGRATION, Feature.MIG_DEVICE_STATE):
            self._migration.movable()
        elif feature is Feature.DMA_BUF:
            dma_bufs.check(self._regions)
        else:
            self._dirty.check()

    def _get(self, feature: Feature, data: bytes, room: int) -> bytes:
        match feature:
            case Feature.MIGRATION:
                found = MIGRATION.pack(self._migration.flags())
            case Feature.MIG_DEVICE_STATE:
                found = STATE.pack(self._migration.state, 0)
            case _:
                return self._report(data, room)
        if room < len(found):
            raise _no_room(feature, room, len(found))
        return found

    def _report(self, data: bytes, room: int) -> bytes:
        feature = Feature.DMA_LOGGING_REPORT
        asked = LoggingReport.unpack(data, feature.name)
        need = len(asked.pack()) + asked.bitmap_size
        if room < need:
            raise _no_room(feature, room, need)
        if need > self._most():
            raise VfioUserError(
                f"{feature.name}: {need} bytes do not fit into a message of {self._most()}", errno.E2BIG
            )
        return asked.pack() + self._dirty.report(asked)

    def _set(self, feature: Feature, data: bytes) -> bytes:
        match feature:
            case Feature.MIG_DEVICE_STATE:
                self._migration.set_state(unpack_state(data, feature.name))
                return data
            case Feature.DMA_LOGGING_START:
                control = LoggingControl.unpack(data, feature.name)
                return control._replace(page_size=self._dirty.start(control)).pack()
            case _:
                self._dirty.stop()
                return data

    def read(self, message: Message) -> Reply:
        """MIG_DATA_READ."""
        size = MigrationRead.unpack(message.payload).size
        if size > self._most():
            raise VfioUserError(f"MIG_DATA_READ: size {size}, max_data_xfer_size is {self._most()}", errno.E2BIG)
        data = self._migration.read(size)
        return Reply([DATA.pack(DATA.size + len(data), len(data)), data])

    def write(self, message: Message) -> Reply:
        """MIG_DATA_WRITE."""
        self._migration.write(MigrationData.unpack(message.payload).data)
        return Reply()


def _no_room(feature: Feature, room: int, need: int) -> ProtocolError:
    argsz, least = room + FEATURE.size, need + FEATURE.size
    return ProtocolError(f"{feature.name}: argsz {argsz}, expected at least {least}")
