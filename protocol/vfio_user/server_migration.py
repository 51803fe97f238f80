"""The server's side of a migration: the state of the device, and the data that comes and goes."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfio_user.constants import DeviceState, MigrationFlags
from vfio_user.device_states import STILL, way
from vfio_user.errors import VfioUserError
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.movable import Movable

_KEY = "migration"
_ERROR, _STOP, _RUNNING = DeviceState.ERROR, DeviceState.STOP, DeviceState.RUNNING
_STOP_COPY, _RESUMING, _PRE_COPY = DeviceState.STOP_COPY, DeviceState.RESUMING, DeviceState.PRE_COPY


class ServerMigration:
    """The migration of one session's device. ``movable`` is None for a device that cannot migrate."""

    def __init__(self, movable: Movable | None, ledger: Ledger) -> None:
        self.state = _RUNNING
        self._movable = movable
        self._ledger = ledger
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self.loaded = False
        """Whether the device stands still with a state that was loaded, and has not run yet."""
        self._awaiting = False
        """Whether another device has had the files of this one since its client came."""
        self._lost = ""
        """Why data is lost: the process that had it has died."""

    @property
    def still(self) -> bool:
        """Whether nothing of the device runs."""
        return self.state in STILL

    def movable(self) -> Movable:
        """The device. Raises VfioUserError (ENOTSUP) if it cannot migrate."""
        if self._movable is None:
            raise VfioUserError("MIGRATION: this device cannot migrate", errno.ENOTSUP)
        return self._movable

    def flags(self) -> MigrationFlags:
        """How the device can migrate."""
        return MigrationFlags.STOP_COPY | (MigrationFlags.PRE_COPY if self.movable().pre_copy else MigrationFlags(0))

    def set_state(self, state: DeviceState) -> None:
        """Go to ``state``, by way of others if it takes that.

        Raises VfioUserError if no way leads there, or if the device refuses a step. Another exception is the device's
        own. The device has then stayed where that step began; it is in ERROR if it could not go on running.
        """
        device = self.movable()
        if self._lost and self.state is _ERROR:
            raise VfioUserError(f"device_state: {self._lost}; only DEVICE_RESET leads out of ERROR", errno.EIO)
        for each in way(self.state, state, pre_copy=device.pre_copy):
            self._step(device, self.state, each)
            self._enter(each)

    def _step(self, device: Movable, old: DeviceState, new: DeviceState) -> None:
        match old, new:
            case (DeviceState.RUNNING, DeviceState.STOP):
                device.hold()
            case (DeviceState.STOP, DeviceState.RUNNING):
                try:
                    device.go()
                except VfioUserError:
                    raise
                except BaseException:
                    self._enter(_ERROR)
                    raise
                self.loaded = False
            case (DeviceState.STOP, DeviceState.STOP_COPY):
                self._outgoing = memoryview(device.save(last=True))
            case (DeviceState.RUNNING, DeviceState.PRE_COPY):
                self._outgoing = memoryview(device.save(last=False))
            case (DeviceState.PRE_COPY, DeviceState.STOP_COPY):
                if self._lost:
                    raise VfioUserError(f"device_state: {self._lost}; go back to RUNNING", errno.EIO)
                device.hold()
                try:
                    self._outgoing = memoryview(bytes(self._outgoing) + device.save(last=True))
                except BaseException:
                    device.go()
                    raise
            case (DeviceState.STOP_COPY, DeviceState.STOP) | (DeviceState.PRE_COPY, DeviceState.RUNNING):
                self._outgoing = memoryview(b"")
                device.forget()
            case (DeviceState.STOP, DeviceState.RESUMING):
                self._incoming.clear()
            case (DeviceState.RESUMING, DeviceState.STOP):
                data = bytes(self._incoming)
                self._incoming.clear()
                device.load(data)
                self.loaded = True

    def _enter(self, state: DeviceState) -> None:
        self.state, self._lost = state, ""
        if state is _RUNNING:
            self._awaiting = False
            self._ledger.drop(_KEY)
        else:
            note = {"state": state.name, "loaded": self.loaded, "awaiting": self._awaiting}
            self._ledger.keep(Kept(_KEY, note))

    def read(self, size: int) -> memoryview:
        """The next ``size`` bytes of the state; fewer at the end. Raises VfioUserError if there is nothing to read."""
        self.movable()
        if self._lost or self.state not in (_STOP_COPY, _PRE_COPY):
            why = self._lost or f"the device is in {self.state.name}, and data can be read in STOP_COPY and PRE_COPY"
            raise VfioUserError(f"MIG_DATA_READ: {why}")
        data, self._outgoing = self._outgoing[:size], self._outgoing[size:]
        return data

    def write(self, data: bytes) -> None:
        """Take the next bytes of a state. Raises VfioUserError if none is expected, or if there are too many."""
        most = self.movable().most
        if self._lost or self.state is not _RESUMING:
            why = self._lost or f"the device is in {self.state.name}, and data can be written in RESUMING"
            raise VfioUserError(f"MIG_DATA_WRITE: {why}")
        if len(self._incoming) + len(data) > most:
            raise VfioUserError(f"MIG_DATA_WRITE: more than the {most} bytes that a state can have", errno.EFBIG)
        self._incoming += data

    def reset(self, reset: Callable[[], None]) -> None:
        """Have the device ``reset``. It runs afterwards; if another device has its files, it stands still in STOP."""
        self._clear(reset)
        self.begin()

    def _clear(self, reset: Callable[[], None]) -> None:
        reset()
        self._outgoing, self.loaded = memoryview(b""), False
        self._incoming.clear()
        if self.state is not _RUNNING and self._movable is not None:
            still = self.still
            self._enter(_RUNNING)
            self._movable.forget()
            if still:
                self._movable.reset()

    def leave(self, reset: Callable[[], None]) -> None:
        """The client leaves: the device runs with the state that it has. What is in ERROR is ``reset``.

        So is a device that has not run since another one had its files: it takes none, because that one may want them
        back. An exception is the device's own: it is reset then, too.
        """
        if self._movable is None or self.state is _RUNNING:
            return
        if self.state is _PRE_COPY:
            self._movable.forget()
        elif self.state is _ERROR or self._awaiting:
            self._clear(reset)
        else:
            try:
                self._movable.go()
            except VfioUserError:  # the device goes on elsewhere, with its files
                self._clear(reset)
            except BaseException:
                self._clear(reset)
                raise
            self._movable.forget()
        self._enter(_RUNNING)

    def begin(self) -> None:
        """A client has come: a device that awaits its state begins in STOP."""
        if self._movable is not None and not self.still and self._movable.awaits():
            self._movable.inherit(loaded=False)
            self._awaiting = True
            self._enter(_STOP)

    def inherited(self, estate: Estate) -> None:
        """Stand still if the process before has ended while its device did. Call it before the state is taken over."""
        note = estate.note(_KEY)
        if not note or self._movable is None:
            return
        state = DeviceState[note["state"]]
        self.loaded, self._awaiting = bool(note["loaded"]), bool(note["awaiting"])
        if state in (_STOP_COPY, _PRE_COPY):
            self._lost = "the process that gave the data has died, so the data has no end"
        elif state is _RESUMING:
            self._lost = "the process that took the data has died, and the data with it"
            state = _ERROR
        self.state = state
        if state in STILL:
            self._movable.inherit(loaded=self.loaded)
