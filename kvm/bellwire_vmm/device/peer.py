"""The connection to a device, as its guest sees it: a failed read gives all ones, a failed write is lost."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

from vfio_user import Client, Disconnected, FramingError, RegionWrite, TimedOut, VfioUserError

_FATAL = Disconnected, FramingError, TimedOut  # after a late answer or half a message, none can be understood

_log = logging.getLogger(__name__)


class Peer:
    """Wraps a `vfio_user.Client` for use on vCPU threads. ``lock`` is the platform's.

    ``refused`` counts accesses that the device answered with an error. Once the connection is lost, ``lost`` says why.
    """

    def __init__(self, client: Client, lock: threading.RLock) -> None:
        self.client = client
        self.lock = lock
        self.refused = 0
        self.lost = ""

    def answer(self) -> None:
        """Answer the device's DMA messages that have arrived. Does not wait."""
        with self.tolerant():
            self.client.poll()

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a region: all ones if the device does not answer."""
        if not self.lost:
            try:
                return self.client.read(region, offset, size)
            except VfioUserError as error:
                self._note(error)
        return b"\xff" * size

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write a region. A ``posted`` write returns before the device has answered."""
        if not self.lost:
            try:
                self.client.write(region, offset, data, posted=posted)
            except VfioUserError as error:
                self._note(error)

    def write_many(self, writes: Sequence[RegionWrite]) -> None:
        """Post writes, in as few messages as the server's limit allows."""
        most = self.client.most_writes
        for at in range(0, len(writes), most):
            if not self.lost:
                with self.tolerant():
                    self.client.write_multi(writes[at : at + most], posted=True)

    @contextlib.contextmanager
    def tolerant(self) -> Iterator[None]:
        """A context in which errors of the device are noted and not raised: the guest has no way to see them."""
        try:
            yield
        except VfioUserError as error:
            self._note(error)

    def _note(self, error: VfioUserError) -> None:
        if isinstance(error, _FATAL):
            if not self.lost:
                _log.warning("the device is gone: %s", error)
            self.lost = str(error)
        else:
            self.refused += 1
            _log.debug("the device refused: %s", error)
