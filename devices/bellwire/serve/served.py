"""Serves one device to its clients, one after the other: the work of one turn of a worker's loop.

The order of rings and messages
===============================

A guest rings doorbells, writes and reads. A ring arrives in an eventfd or on an ioregionfd socket; a message arrives in
the client's socket. The worker cannot see which of them arrived first. It still keeps two promises
(docs/architecture.md describes them from the side of the guest):

* *A ring sees every write that was posted before it.* The vCPU that rings has sent its posted writes already, so they
  are in the socket by the time that the ring is in its fd. Therefore the worker gathers the rings first, then drains
  the socket, and runs the hooks last. If it drained first and gathered then, a write and its ring could arrive in
  between, and the ring would overtake the write. The worker drains the socket to its end, or takes DRAIN messages,
  which is more than a socket holds. So it has handled all messages that were there when it gathered the rings, and a
  client that never stops sending does not hold up a ring. A single ring needs no second look at the socket: that ring
  has ended the wait, and the wait would have reported a write before it.
* *A reply flushes rings.* A guest that reads after a ring expects to see the effect of the ring. So the worker gathers
  and runs rings before it handles a message that wants a reply (:meth:`DeviceBackend.before_reply`), and before it
  answers an access while it waits (:mod:`vfio_user.plain_reads`). A reset is the exception: it drops the rings.

Both promises hold only if a client posts nothing while it waits for a reply. Otherwise a posted write may stand in the
socket behind the command that wants the reply. The worker runs all rings before it handles that command, so a ring
that came after the write would overtake it.

A ring that is followed by a posted write has no order: the worker may handle the write first. To keep that order, the
worker would have to look at the doorbell fds before every message, as it does before a reply. That is one system call
for each posted write, and most of the cost of a posted write.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Mapping
from typing import Any

from bellwire.device import PciDevice
from bellwire.filters import Stack
from bellwire.model.core import Core
from bellwire.model.source import StateFiles
from bellwire.serve.backend import DeviceBackend
from bellwire.serve.boundary import Boundary
from bellwire.serve.doorbell_fds import COMMAND, DoorbellFds
from bellwire.serve.host import ClientHost
from bellwire.serve.loop import Deadline, Loop
from bellwire.serve.migration import MigratingDevice
from bellwire.serve.observer import Observer
from bellwire.serve.remembered import Remembered
from bellwire.serve.standstill import Standstill
from vfio_user import (
    RATIFIED,
    SERVER,
    Capabilities,
    Channel,
    DeviceState,
    Dialect,
    Estate,
    Journal,
    Kept,
    KeptFiles,
    Ledger,
    Session,
    Tap,
)
from vfio_user.hang_up import hang_up
from vfio_user.journal import BUSY, HEAD

RECOVERING = "recovering"
"""The ledger's entry while a device goes on after a crash: whether that ends processes."""
_UCRED = struct.Struct("3i")
DRAIN = 8192  # messages in a turn: more than a socket holds, so a ring never waits for ever behind a flood


class Served:
    """One device, and the client that it has at present, if any. ``limits`` holds for every client.

    ``ledger`` is told of all that a successor needs to go on with the client.
    """

    def __init__(
        self,
        device: PciDevice,
        loop: Loop,
        observer: Observer | None = None,
        limits: Capabilities = SERVER,
        ledger: Ledger | None = None,
    ) -> None:
        self.core: Core = device.core
        self._observer = observer or Observer()
        self.core.log.tell = self._observer.trouble
        self._boundary = Boundary(self.core, self._observer)
        self._ledger = ledger or Ledger()
        self._standstill = Standstill(loop)
        self.core.host = self._host = ClientHost(self._standstill, self._boundary, self._ledger)
        self.filters = Stack(self.core, self._rebuild)
        """What stands between client and device."""
        self.channel: type[Channel] = Channel
        """What talks to clients."""
        self._busy = False  # whether the process before was at a command
        self.also: tuple[Kept, ...] = ()
        """What else the ledger has of each client."""
        self._introduced = False
        self._limits = limits
        self.overdue: Deadline | None = None
        """The timer that ends the wait for VERSION."""
        self.session: Session | None = None
        self._loop = loop
        self._doorbell_fds: DoorbellFds | None = None
        self._backend: DeviceBackend | None = None
        self._session_fd = -1
        self._alone: list[tuple[int, int]] = []
        self._tap: Tap | None = None

    def attach(self, connection: socket.socket, dialect: Dialect = RATIFIED) -> None:
        """Serve the client at the other end of ``connection``. The session owns the socket from now on."""
        self._ledger.keep(Kept("client", {}, (connection.fileno(),)), *self.also)
        self.keep_state()
        session, _ = self._connect(connection, dialect, Estate())
        self.core.tally.clients += 1
        self._observer.connected(*_credentials(connection))
        self.core.signals.relevel()
        self.core.signals.resend()
        session.migration.begin()

    @property
    def lasting(self) -> Remembered:
        """The files of device code that belong to its state."""
        return self._host.lasting

    def bequeathed(self, estate: Estate) -> None:
        """The device is set up to go on with this: it may have files that were kept before :meth:`take_over`."""
        self._host.estate = estate

    def take_over(self, estate: Estate, dialect: Dialect = RATIFIED, *, died: bool = True) -> None:
        """Go on with the client and the state of a process that has ended. The device has been reset.

        ``died`` is False if that process has made room between two turns. Raises a StateError if the device cannot go
        on with that state, a VfioUserError if the client has gone.
        """
        tries = int(estate.note(RECOVERING).get("tries", 0))
        fatal = tries > estate.older  # older code has a try of its own
        if died:
            self._ledger.keep(Kept(RECOVERING, {"tries": tries + 1}, ()))
        areas = {note["bar"]: estate.fds(key)[0] for key, note in estate.below("area")}
        files = StateFiles(estate.fds("state")[0], areas)
        if "client" not in estate:
            self._host.estate = Estate()
            self.core.take_over(files, client=False, died=True, fatal=fatal)
            self._ledger.clear()
            return
        connection = socket.socket(fileno=estate.take("client")[0])
        session, doorbell_fds = self._connect(connection, dialect, estate)
        session.take_over(estate)
        doorbell_fds.take_over()
        self._introduced = session.client is not None
        session.migration.begin()
        loaded = session.migration.loaded
        self._host.estate = estate
        try:
            self.core.take_over(files, client=True, died=died, moved=self.keep_state, loaded=loaded, fatal=fatal)
        finally:
            self._host.estate = Estate()
        if died:
            self._ledger.drop(RECOVERING)
        repeats = self.core.device.repeats
        culprit = doorbell_fds.culprit(command=self._busy, hung=estate.hung)
        # Rings first: a reply to the command that was begun flushes them, and takes new ones into their slots.
        rung = not session.migration.still and doorbell_fds.again(repeats=repeats, culprit=culprit)
        session.finish(estate, again=repeats and culprit != COMMAND)
        if rung:
            session.service(DRAIN)  # a ring sees the writes that came before it
            doorbell_fds.run()
        doorbell_fds.survived()

    def keep_state(self) -> None:
        """Tell the ledger where the state is, and which files belong to it."""
        files = self.core.state.files
        areas = (Kept(f"area {index}", {"bar": index}, (fd,)) for index, fd in files.areas.items())
        self._ledger.keep(Kept("state", {}, (files.state,)), *areas, *self.lasting)

    def _connect(self, connection: socket.socket, dialect: Dialect, estate: Estate) -> tuple[Session, DoorbellFds]:
        own = self._standstill
        doorbell_fds = self._doorbell_fds = DoorbellFds(
            self.core, self._boundary.call, own.watch, own.unwatch, self.filters.by, self._ledger, estate
        )
        backend = DeviceBackend(self.core, self._host, doorbell_fds, own, self._boundary, self._observer)
        self._backend = backend
        journal = Journal.of(self._limits, estate, self._ledger)
        self._busy = journal.marks[BUSY] > journal.marks[HEAD]
        self.session = self._host.session = Session(
            connection,
            backend,
            limits=self._limits,
            dialect=dialect,
            ledger=self._ledger,
            journal=journal,
            channel=self.channel,
            movable=MigratingDevice(self.core, backend, own, self.filters),
        )
        if self.core.dma.keeps_files:
            self.session.dma.kept = KeptFiles()
        self._host.doorbell_fds = doorbell_fds
        self.session.tap(self._tap)
        self._introduced = False
        self.core.join(True)
        self._session_fd = self.session.fileno()
        self._alone = [(self._session_fd, int(select.EPOLLIN))]
        self._loop.watch(self._session_fd)  # without a callback, as doorbells: turn() handles them in its own order
        return self.session, doorbell_fds

    def detach(self, reason: str = "the device is being stopped") -> None:
        """Disconnect the client, and release its memory, its eventfds and the doorbell fds. The state stays."""
        if self.session is None or self._doorbell_fds is None or self._backend is None:
            return
        self._boundary.call(self.session.migration.leave, self._reset)
        self._doorbell_fds.gather_all()
        self._doorbell_fds.run()
        self._backend.end_jobs()
        self.core.news.parting()
        self._heard()
        hang_up(self.session.fileno())
        self._ledger.clear()
        self._release(self.session, self._doorbell_fds)
        self._observer.left(reason)

    def leave(self) -> None:
        """Stop serving the client without telling it or the ledger, so that a successor can go on with it."""
        if self.session is not None and self._doorbell_fds is not None:
            self.core.finish_jobs()
            self._boundary.call(self.core.device.leaving)
            self.core.news.parting()
            self._release(self.session, self._doorbell_fds)

    def _release(self, session: Session, doorbell_fds: DoorbellFds) -> None:
        self._loop.unwatch(session.fileno())
        doorbell_fds.close()
        session.settle()
        session.close()
        self.session = self._host.session = self._doorbell_fds = self._backend = self._host.doorbell_fds = None
        self.core.join(False)

    def wait(self) -> dict[int, int]:
        """Sleep until there is something to do. Returns the descriptors that can be read, and their events.

        While nothing else happens, the accesses that the session knows are done in here. Raises what :meth:`turn`
        raises.
        """
        session, doorbell_fds, loop = self.session, self._doorbell_fds, self._loop
        if session is None or doorbell_fds is None:
            ready = loop.sleeper()()
        elif session.waiting:  # while the session waited for a DMA reply, it may have received other messages
            ready = [*loop.look(), *self._alone]
        else:
            ready = session.wait(loop.sleeper, self._alone, doorbell_fds.poll)
        return dict(ready)

    def turn(self, ready: Mapping[int, int]) -> None:
        """Handle the client's messages and rings. ``ready`` has the descriptors that can be read.

        Rings are gathered first, then the socket is drained, and the hooks of the rings run last: so a ring sees every
        write that was posted before it. Raises what :meth:`vfio_user.Session.service` raises when the client has gone.
        """
        session, doorbell_fds = self.session, self._doorbell_fds
        if not ready or session is None or doorbell_fds is None:
            return
        rings, written = doorbell_fds.gather(ready), self._session_fd in ready
        if rings:
            if written or (rings > 1 and session.look()):
                session.service(DRAIN)
            doorbell_fds.run()
        elif written:
            session.service(DRAIN, probe=False)
        if not self._introduced and session.client is not None:
            self._introduced = True
            self._heard()
            self._observer.introduced(session.client)

    def _heard(self) -> None:
        """Stop the timer that ends the wait for VERSION."""
        if self.overdue is not None:
            self._loop.remove(self.overdue)
            self.overdue = None

    def reset(self) -> None:
        """Reset the device as DEVICE_RESET does. Rings from before the reset are dropped."""
        if self.session is None:
            self._reset()
        else:
            self.session.migration.reset(self._reset)

    def _reset(self) -> None:
        if self._doorbell_fds is not None:
            self._doorbell_fds.discard()
        self.core.reset()

    @property
    def migrating(self) -> bool:
        """Whether the client has begun to migrate the device."""
        return self.session is not None and self.session.migration.state is not DeviceState.RUNNING

    def tap(self, tap: Tap | None) -> None:
        """Show each message of this client, and of later ones, to ``tap``, or to nobody."""
        self._tap = tap
        if self.session is not None:
            self.session.tap(tap)

    def _rebuild(self) -> None:
        """Filters have come or gone: what keeps methods of the core gets them again."""
        if self._doorbell_fds is not None:
            self._doorbell_fds.rebuild()

    def measures(self) -> dict[str, Any]:
        """The statistics, and what the device's meter has, if it has one."""
        meter = self.core.meter
        return {"statistics": self.statistics(), "meter": None if meter is None else meter.to_dict()}

    def statistics(self) -> dict[str, int]:
        """The totals of the tally, and what the client has set up at present."""
        session = self.session
        if session is not None:
            session.settle()
        numbers = self.core.tally.to_dict() | self.core.device.dma.counts
        return numbers | {"dma_maps": len(session.dma) if session else 0, "connected": int(session is not None)}


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """The process and user id of the peer (unix(7), SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid
