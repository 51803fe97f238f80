"""A device that a worker serves, as it migrates: it stands still, gives its state away, and takes one over."""

from __future__ import annotations

import errno

from bellwire.errors import BellwireError, StateError
from bellwire.filters import Stack
from bellwire.model import succession
from bellwire.model.core import Core
from bellwire.model.parcel import Parcel, unpack
from bellwire.serve.backend import DeviceBackend
from bellwire.serve.standstill import Standstill
from vfio_user import VfioUserError

SETTLING = 0.1  # seconds for what threads work on; the rest is in the state, or its result waits
SLACK = 64 << 20
LARGE = 64 << 10


class MigratingDevice:
    """A :class:`vfio_user.Movable`: the device of ``core``, for the client of ``backend``."""

    def __init__(self, core: Core, backend: DeviceBackend, standstill: Standstill, filters: Stack) -> None:
        self._core = core
        self._backend = backend
        self._standstill = standstill
        self._filters = filters
        self._parcel = Parcel()
        extents = core.state.extents()
        size = sum(extent.stop - extent.start for extent in extents)
        self.pre_copy = size >= LARGE
        self.most = 2 * size + size // 32 + SLACK

    def hold(self) -> None:
        """Finish what threads work on, then stand still."""
        core = self._core
        self._filters.release()
        self._standstill.settle(SETTLING, self._backend.settle)
        self._backend.end_jobs()
        self._freeze()
        try:
            core.call(core.device.halted)
        except BaseException as error:
            try:
                core.call(core.device.resumed)
            finally:
                self._thaw()
            if isinstance(error, BellwireError):
                raise VfioUserError(f"STOP: {error}") from error
            raise

    def _freeze(self) -> None:
        core, backend = self._core, self._backend
        self._standstill.stop()
        core.still = True
        backend.reader, backend.writer = backend.still_reader, backend.still_writer  # type: ignore[method-assign]
        backend.before_reply = lambda: None  # type: ignore[method-assign]
        self._forget_accesses()

    def _thaw(self) -> None:
        core, backend = self._core, self._backend
        if not core.still:
            return
        del backend.reader, backend.writer, backend.before_reply
        core.still = False
        self._standstill.go()
        self._forget_accesses()
        core.news.joined()

    def _forget_accesses(self) -> None:
        """The session keeps readers and writers of accesses that it has checked."""
        if self._core.host is not None:
            self._core.host.regions_changed()

    def go(self) -> None:
        """Run again. Raises VfioUserError, and stands still as before, if another device has its files."""
        core = self._core
        self._resume()
        self._thaw()
        waiting, core.waiting = core.waiting, None
        if waiting is not None:
            try:
                waiting()
            except BaseException:
                self._freeze()
                raise

    def _resume(self) -> None:
        try:
            self._core.call(self._core.device.resumed)
        except BellwireError as error:
            raise VfioUserError(f"RUNNING: {error}", errno.EBUSY) from error

    def reset(self) -> None:
        """Run again, after a reset."""
        self._core.waiting = None
        self._thaw()

    def awaits(self) -> bool:
        """Whether another device still has its files."""
        if self._core.device.awaits:
            try:
                self._resume()
            except VfioUserError as error:
                self._core.log.warning(("awaits",), "it stands still until its state comes: %s", error)
                return True
        return False

    def save(self, *, last: bool) -> bytes:
        """A snapshot, or what has changed since the one before. Raises VfioUserError if the device refuses it."""
        core = self._core
        try:
            snapshot = core.snapshot() if core.waiting is None else core.state.snapshot()
        except StateError as error:
            raise VfioUserError(f"STOP_COPY: {error}") from error
        return self._parcel.pack(snapshot, last=last)

    def forget(self) -> None:
        """The next :meth:`save` gives all of the state."""
        self._parcel.forget()

    def load(self, data: bytes) -> None:
        """Put the state in ``data`` in place."""
        try:
            succession.load(self._core, unpack(data))
        except StateError as error:
            raise VfioUserError(f"RESUMING: {error}") from error

    def inherit(self, *, loaded: bool) -> None:
        """Stand still from the start on."""
        self._freeze()
