"""What a process that takes over gets of a back end: the connection, whose rings run on, and the record of them.

The rings run on, and the successor goes on with them: some back ends fail if a ring stops that has requests in flight.
If the process has died while rings began or memory changed, its successor asks the back end where the rings are, which
stops them, and starts them anew. Rings are named in the ledger only once they have a base, so that answer is right.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bellwire.vhost.backend import Backend
from bellwire.vhost.errors import BackendError
from bellwire.vhost.memory import Piece, pieces, told

if TYPE_CHECKING:
    from bellwire.virtio import VirtioDevice

RECORD = "vhost in flight"
"""The name of the file in which the back end writes down what is in flight."""
CONNECTION, CHANNEL = "vhost connection", "vhost channel"
"""The names of the sockets to the back end: of the front end's requests, and of the back end's."""
BACKEND = "vhost back end"
"""The name under which the driver's view of the back end is kept: its features and configuration."""
Adopt = Callable[[socket.socket, Mapping[str, Any]], Backend]
"""Goes on with a connection, by its note. Raises BackendError."""


class Bequest:
    """Of the back end of ``device``. Without ``adopt``, the record alone is kept."""

    def __init__(self, device: VirtioDevice, adopt: Adopt | None) -> None:
        self._device = device
        self._adopt = adopt
        self._note: Mapping[str, Any] = {}
        self._described: Mapping[str, Any] | None = None
        self._record: tuple[int, Mapping[str, Any]] | None = None
        self.kept = False
        """Whether the ledger has the connection."""
        self.runs = False
        """Whether the back end still has the rings of a process that has died."""
        self.steady = True
        """Whether it has the memory that the note says."""
        self.goes_on = False
        """Whether it has all of its rings, too, so that they need not stop."""

    @property
    def due(self) -> bool:
        """Whether these rings can be asked back: the device has the state of that process by now."""
        return self.runs and self.kept

    # -- for a successor

    def keep(self, backend: Backend, rings: Sequence[int], *, begun: bool = False) -> None:
        """The back end is about to get these rings, and has their bases; or it has ``begun`` with all of them."""
        if backend.record is not None:
            self._device.keep_file(RECORD, *backend.record)
        found = backend.connection if self._adopt is not None else None
        if found is not None:
            if found.channel >= 0:
                self._device.keep_file(CHANNEL, found.channel)
            self.kept = True
            self._note = {"rings": rings, "begun": begun}
            self._tell(backend, steady=True)

    def describe(self, features: int, config: bytes | None) -> None:
        """What the driver knows of the back end: a successor that finds none goes on with that."""
        found = {"features": features, "config": None if config is None else config.hex()}
        described = found if self._device.connected else None
        if described not in (None, self._described):
            fd = os.eventfd(0, os.EFD_CLOEXEC)  # the ledger keeps notes beside descriptors
            self._device.keep_file(BACKEND, fd, found)
            os.close(fd)
        self._described = described

    @contextlib.contextmanager
    def changed(self, backend: Backend) -> Iterator[None]:
        """What the back end has of guest memory changes in the block."""
        self._tell(backend, steady=False)
        yield
        self._tell(backend, steady=True)

    def drop(self) -> None:
        """The back end has no rings, or has gone."""
        self.runs = False
        if self.kept:
            self.kept = False
            for name in (CONNECTION, CHANNEL):
                self._device.drop_file(name)

    def _tell(self, backend: Backend, *, steady: bool) -> None:
        found = backend.connection
        if self.kept and found is not None:
            self._note = {**self._note, **found.note, "steady": steady}
            self._device.keep_file(CONNECTION, found.fd, self._note)

    # -- in a successor

    def described(self) -> tuple[int, bytes | None] | None:
        """The features and the configuration of the last back end; None if there is no process or client before."""
        kept = self._device.kept_file(BACKEND)
        if kept is None:
            return None
        os.close(kept[0])
        config = kept[1]["config"]
        return kept[1]["features"], None if config is None else bytes.fromhex(config)

    def take_record(self) -> None:
        """Take the record of the process before: the back end gets it, now or when there is one."""
        self._record = self._device.kept_file(RECORD)

    def pass_on(self, backend: Backend) -> None:
        """Give the record to the back end. Raises BackendError if it can be none."""
        record, self._record = self._record, None
        if record is not None:
            backend.inherit(*record)

    def close(self) -> None:
        """Close a record that no back end has got."""
        if self._record is not None:
            os.close(self._record[0])
            self._record = None

    def adopted(self) -> Backend | None:
        """The back end of a process that has died, if its connection is in order."""
        kept, channel = (self._device.kept_file(name) for name in (CONNECTION, CHANNEL))
        if kept is None or self._adopt is None:
            return None
        with contextlib.ExitStack() as stack:
            if channel is not None:  # the back end gets another one first
                stack.callback(os.close, channel[0])
            sock = stack.enter_context(socket.socket(fileno=kept[0]))
            try:
                backend = self._adopt(sock.dup(), kept[1])
            except (BackendError, KeyError, TypeError, ValueError) as error:
                self._device.warn("the connection to the back end is given up: %s", error)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return None
        self._note, self.runs = kept[1], True
        return backend

    def inherited(self, backend: Backend) -> list[Piece]:
        """What the back end has of guest memory. It gets the record."""
        self.pass_on(backend)
        self.kept = True  # if it is not this back end's, a new one is kept, or dropped, in its place
        if not self.runs:
            return []
        table = told(pieces(self._device.dma.files()), self._note["table"])
        backend.known(table, self._note["rings"])
        return table

    def recall(self) -> Sequence[int]:
        """The rings that the back end has: they are asked back now."""
        self.runs, self.steady = False, bool(self._note["steady"])
        self.goes_on = self.steady and bool(self._note["begun"])
        rings: Sequence[int] = self._note["rings"]
        return rings
