"""A device and its clients, one after the other: what a worker's loop turns.

What comes before what
======================

A guest rings, writes and reads. A ring is in an eventfd or on an ioregionfd socket, a message in the client's socket,
and nothing tells which of them was there first. Two promises can be kept all the same (docs/architecture.md has them
as a guest sees them):

* *A ring sees every write that was posted before it.* The vCPU that rings has sent its posted writes already, so they
  are in the socket by the time that the ring is in its descriptor. Hence rings are gathered first, the socket is
  drained next, and the hooks run last. To drain first and gather next would let a ring overtake a write that comes in
  between. Draining is to the end, or to DRAIN messages, which is more than a socket holds: what was there when the
  rings were gathered is through by then, and a client that never stops sending holds up no ring.
* *A reply flushes rings.* A guest that reads after it has rung expects to see what the ring has done. So before a
  message that wants a reply is handled, rings are gathered and run (:meth:`DeviceBackend.before_reply`). The same is
  done for reads that are answered while the worker waits (:mod:`vfio_user.plain_reads`). A reset alone voids rings
  instead.

The two hold together as long as a client posts nothing while it waits for a reply: a write that stands behind an
awaited command in the socket would be overtaken by a ring that came after it.

A ring that is followed by a posted write has no order: the write may be handled first. To keep that order, each
message would have to look at the eventfds before it is handled, as those that want a reply do: a system call for
every posted write, which is most of what a posted write costs.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Container

from bellwire.device import PciDevice
from bellwire.model.core import Core
from bellwire.serve.backend import DeviceBackend
from bellwire.serve.boundary import Boundary
from bellwire.serve.doorbell_fds import DoorbellFds
from bellwire.serve.host import ClientHost
from bellwire.serve.loop import Loop
from bellwire.serve.observer import Observer
from vfio_user import Session

_UCRED = struct.Struct("3i")
DRAIN = 8192  # messages in a turn: more than a socket holds, so a ring never waits for ever behind a flood


class Served:
    """One device and, while there is one, its client."""

    def __init__(self, device: PciDevice, loop: Loop, observer: Observer | None = None) -> None:
        self.core: Core = device.core
        self._observer = observer or Observer()
        self.core.log.tell = self._observer.trouble
        self._boundary = Boundary(self.core, self._observer)
        self.core.host = self._host = ClientHost(loop, self._boundary)
        self._introduced = False
        self.session: Session | None = None
        self._loop = loop
        self._doorbell_fds: DoorbellFds | None = None
        self._session_fd = self._doorbells_fd = -1
        self._alone: list[tuple[int, int]] = []

    def attach(self, connection: socket.socket, io_fd_entry_size: int = 40) -> None:
        """Serve the client at the far end of ``connection``; the session owns it from now on."""
        doorbell_fds = self._doorbell_fds = DoorbellFds(self.core, self._boundary.call)
        backend = DeviceBackend(self.core, self._host, doorbell_fds, self._loop, self._boundary, self._observer)
        self.session = self._host.session = Session(connection, backend, io_fd_entry_size=io_fd_entry_size)
        self._introduced = False
        self.core.tally.clients += 1
        self.core.join(True)
        self._observer.connected(*_credentials(connection))
        self._session_fd, self._doorbells_fd = self.session.fileno(), doorbell_fds.fileno()
        self._alone = [(self._session_fd, int(select.EPOLLIN))]
        self._loop.watch(self._session_fd)  # these two have their own place in the turn
        self._loop.watch(self._doorbells_fd)
        self.core.signals.relevel()
        self.core.signals.resend()

    def detach(self, reason: str = "the device is being stopped") -> None:
        """Let the client go: its memory, its eventfds and our doorbells' fds; the device's state stays."""
        if self.session is None or self._doorbell_fds is None:
            return
        self._doorbell_fds.gather()
        self._doorbell_fds.run()
        self.core.finish_jobs()
        self._loop.unwatch(self._doorbell_fds.fileno())
        self._loop.unwatch(self.session.fileno())
        self._doorbell_fds.close()
        self.session.settle()
        self.session.close()
        self.session = self._host.session = self._doorbell_fds = None
        self.core.join(False)
        self._observer.left(reason)

    def wait(self) -> dict[int, int]:
        """Sleep until there is something to do: the descriptors that can be read, and their events.

        Reads of registers that run no device code are answered meanwhile, if nothing else is going on. Raises what
        :meth:`turn` raises.
        """
        session, doorbell_fds, loop = self.session, self._doorbell_fds, self._loop
        if session is None or doorbell_fds is None:
            ready = loop.sleeper()()
        elif session.waiting:  # a DMA message's wait may have taken commands off the socket
            ready = loop.look()
        else:
            ready = session.wait(loop.sleeper(), self._alone, doorbell_fds.poll)
        return dict(ready)

    def turn(self, ready: Container[int]) -> None:
        """Handle what the client has sent and rung; ``ready`` are the descriptors that have something to read.

        Rings are taken out of their fds first and acted upon last, with the socket drained in between: so a ring
        sees every write that was posted before it. Raises what :meth:`vfio_user.Session.service` raises when the
        client is gone.
        """
        session, doorbell_fds = self.session, self._doorbell_fds
        if session is None or doorbell_fds is None:
            return
        if self._doorbells_fd in ready and doorbell_fds.gather():
            if self._session_fd in ready or session.look():
                session.service(DRAIN)
            doorbell_fds.run()
        elif self._session_fd in ready or session.waiting:
            session.service(DRAIN, probe=False)
        if not self._introduced and session.client is not None:
            self._introduced = True
            self._observer.introduced(session.client)

    def reset(self) -> None:
        """Reset the device, as DEVICE_RESET does: rings from before it are void."""
        if self._doorbell_fds is not None:
            self._doorbell_fds.discard()
        self.core.reset()

    def statistics(self) -> dict[str, int]:
        """What has happened so far, and what the client has set up now."""
        session = self.session
        if session is not None:
            session.settle()
        numbers = self.core.tally.to_dict() | self.core.device.dma.counts
        return numbers | {"dma_maps": len(session.dma) if session else 0, "connected": int(session is not None)}


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """The peer's process and user (unix(7), SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid
