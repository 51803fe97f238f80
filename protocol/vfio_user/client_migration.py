"""The client's side of a migration: the states of the device, and the data that moves."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfio_user.constants import Command, DeviceState, Feature, FeatureFlags, MigrationFlags
from vfio_user.dialects import Dialect
from vfio_user.errors import ProtocolError, RemoteError
from vfio_user.features import FEATURE, MIGRATION, STATE, DeviceFeature, unpack_state
from vfio_user.migration import MigrationData, MigrationRead

LACKING = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP))
"""What servers answer that lack a feature, or the command itself."""


class ClientMigration:
    """Migration of a client's device: ``client.migration``. Each call raises what :class:`Client` says of calls.

    To save a device: ``set_state(STOP_COPY)``, then :meth:`read` until it returns nothing. To restore it in another
    server: ``set_state(RESUMING)``, then :meth:`write` all of that in order, then ``set_state(RUNNING)``.
    """

    def __init__(
        self, request: Callable[..., bytes], feature: Callable[..., DeviceFeature], most: int, dialect: Dialect
    ) -> None:
        self._request = request
        self._feature = feature
        self._most = most
        self._dialect = dialect

    def flags(self) -> MigrationFlags:
        """How the device can migrate; 0 if it cannot."""
        if Command.DEVICE_FEATURE in self._dialect.missing:
            return MigrationFlags(0)
        try:
            answer = self._feature(FeatureFlags.GET, Feature.MIGRATION, argsz=FEATURE.size + MIGRATION.size)
        except RemoteError as error:
            if error.errno in LACKING:
                return MigrationFlags(0)
            raise
        if len(answer.data) < MIGRATION.size:
            raise ProtocolError(f"MIGRATION reply: {len(answer.data)} bytes, expected {MIGRATION.size}")
        return MigrationFlags(MIGRATION.unpack_from(answer.data)[0])

    @property
    def state(self) -> DeviceState:
        """The state that the device is in; the server is asked each time."""
        answer = self._feature(FeatureFlags.GET, Feature.MIG_DEVICE_STATE, argsz=FEATURE.size + STATE.size)
        return unpack_state(answer.data, "MIG_DEVICE_STATE reply")

    def set_state(self, state: DeviceState) -> None:
        """Bring the device into ``state``, by way of others where there is no direct way. It is there on return.

        After a RemoteError, :attr:`state` tells where the device has stayed.
        """
        self._feature(FeatureFlags.SET, Feature.MIG_DEVICE_STATE, STATE.pack(state, 0))

    def read(self, maximum: int) -> bytes:
        """MIG_DATA_READ: the next bytes of the device's state, at most ``maximum``; none at the end.

        In PRE_COPY the end is that of what can be read while the device runs. A message holds no more than
        ``max_data_xfer_size`` bytes, so there may be fewer than ``maximum``.
        """
        self._dialect.check(Command.MIG_DATA_READ)
        size = min(maximum, self._most)
        data = MigrationData.unpack(memoryview(self._request(Command.MIG_DATA_READ, MigrationRead(size).pack()))).data
        if len(data) > size:
            raise ProtocolError(f"MIG_DATA_READ reply: {len(data)} bytes, asked were {size}")
        return data

    def write(self, data: bytes | memoryview) -> None:
        """MIG_DATA_WRITE: the next bytes of a state, in as many messages as it takes."""
        self._dialect.check(Command.MIG_DATA_WRITE)
        rest = memoryview(data).cast("B")
        while rest:
            self._request(Command.MIG_DATA_WRITE, MigrationData(bytes(rest[: self._most])).pack())
            rest = rest[self._most :]
