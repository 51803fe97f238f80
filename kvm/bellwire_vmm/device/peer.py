"""The connection to a device as its guest feels it: what goes wrong reads as ones and swallows writes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

from vfio_user import Client, Disconnected, FramingError, RegionWrite, TimedOut, VfioUserError

_FATAL = Disconnected, FramingError, TimedOut  # an answer that comes late, or half a message, is none

_log = logging.getLogger(__name__)


class Peer:
    """Wraps a `vfio_user.Client` for use on vCPU threads. ``lock`` is the platform's.

    ``refused`` counts accesses that the device answered with an error; ``lost`` says why there will be no
    more answers, once that is so.
    """

    def __init__(self, client: Client, lock: threading.RLock) -> None:
        self.client = client
        self.lock = lock
        self.refused = 0
        self.lost = ""

    def answer(self) -> None:
        """Answer what the device asks for by message, if it has asked."""
        with self.tolerant():
            self.client.poll()

    def read(self, region: int, offset: int, size: int) -> bytes:
        """``size`` bytes of a region, or all ones."""
        if not self.lost:
            try:
                return self.client.read(region, offset, size)
            except VfioUserError as error:
                self._note(error)
        return b"\xff" * size

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write a region; ``posted`` returns without knowing whether the device took it."""
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
        """A stretch of talk with the device that the guest has no way to see fail."""
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
