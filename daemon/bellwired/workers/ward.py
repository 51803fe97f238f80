"""A process that serves a device for ``bellwire run``, under a parent (:mod:`bellwired.manager.parent`)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from bellwire.serve.loop import Loop
from bellwired.settings import Filters
from bellwired.workers import wire
from bellwired.workers.event_rings import EventRings
from bellwired.workers.hand_over import HandOvers
from bellwired.workers.ledger import ManagersLedger
from bellwired.workers.relay import say
from bellwired.workers.wire import Answer, Ask, Report, WireError
from vfio_user import Estate

_UCRED = struct.Struct("3i")


class Ward:
    """The process's end of the ``channel`` to its parent. It is process ``number`` of the device, from 0 on.

    ``estate`` is what the process before it has left, if that has left a client. ``hand_overs`` counts, up to this one.
    ``as_started``: with code that was edited since the command's start, the processes before it have not become ready.
    ``filters`` are those that the process before it has told; None if they are those of the command line. ``rings`` has
    its event ring.
    """

    def __init__(
        self,
        channel: socket.socket,
        number: int,
        estate: Estate | None,
        hand_overs: HandOvers,
        rings: EventRings,
        *,
        filters: Filters | None = None,
        as_started: bool = False,
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self.number = number
        self.estate = estate
        self.hand_overs = hand_overs
        self.rings = rings
        self.filters = filters
        self.as_started = as_started
        self.ledger = ManagersLedger(channel)
        """Tells the parent."""

    @property
    def client(self) -> dict[str, Any] | None:
        """What a worker has reported of the client that the process before has left."""
        if self.estate is None or not (fds := self.estate.fds("client")):
            return None
        with socket.socket(fileno=os.dup(fds[0])) as client:
            pid, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        version = self.estate.note("version")
        return {"pid": pid, "uid": uid, **({"capabilities": dict(version)} if version else {})}

    def join(self, loop: Loop, stop: Callable[[], None]) -> None:
        """Answer the parent on the device's ``loop``. ``stop`` is called if the process shall end."""
        loop.watch(self._channel.fileno(), lambda: self._asked(loop, stop))

    def taking_over(self) -> None:
        """Tell the parent that the device is set up, and goes on with the client of the process before."""
        self.ledger.send(Report("taking-over", {}), [])

    def ready(self) -> None:
        """Tell the parent that clients are accepted."""
        self.ledger.send(Report("ready", {}), [])

    def debugged(self) -> None:
        """Tell the parent that a user stops hooks by hand: none counts as hung from now on."""
        self.ledger.send(Report("debugged", {}), [])

    def filtered(self, filters: Filters) -> None:
        """Tell the parent the filters that the device has now: the next process has them, too."""
        self.ledger.send(Report("filtered", {"filters": filters}), [])

    def has_ring(self, ring: int) -> None:
        """Give the parent the event ring of the filter ``trace``: it outlives this process."""
        self.ledger.send(Report("ring", {}), [ring])

    def over(self) -> None:
        """Tell the parent that this process ends because it shall: no other one is started."""
        self.ledger.send(Report("over", {}), [])

    def _asked(self, loop: Loop, stop: Callable[[], None]) -> None:
        try:
            received = wire.receive(self._channel)
        except (BlockingIOError, WireError):
            return
        if received is None:  # the kernel ends this process, too
            loop.unwatch(self._channel.fileno())
            return
        ask, fds = received
        wire.close(fds)
        if isinstance(ask, Ask):
            if ask.what == "stop":
                stop()
            say(self._channel, Answer(ask.number))
