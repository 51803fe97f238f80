"""A worker: one device, one listening socket, one client at a time, one plain loop."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable

from bellwire.device import PciDevice
from bellwire.serve.blame import told
from bellwire.serve.busy_poll import BusyPoll
from bellwire.serve.loop import Loop
from bellwire.serve.observer import Observer
from bellwire.serve.served import Served
from vfio_user import FramingError, VfioUserError

SWITCH_INTERVAL = 1e-5  # seconds: a background thread must not hold up a ring for 5 ms

log = logging.getLogger("bellwire.worker")


class Worker:
    """Runs ``device`` for the clients of ``listener``, one after the other; a second one waits its turn.

    ``connection`` may stand in place of a listener: then the worker ends with that client. ``busy_poll`` are the
    seconds that the loop may look for work before it sleeps; 0: none.
    """

    def __init__(
        self,
        device: PciDevice,
        listener: socket.socket | None = None,
        *,
        connection: socket.socket | None = None,
        observer: Observer | None = None,
        io_fd_entry_size: int = 40,
        busy_poll: float = 0.0,
    ) -> None:
        self.device = device
        self.loop = Loop()
        if busy_poll:
            self.loop.busy_poll = BusyPoll(busy_poll)
        self.served = Served(device, self.loop, observer)
        self._listener = listener
        self._connection = connection
        self._entry_size = io_fd_entry_size
        if listener is not None:
            listener.setblocking(False)

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Set the device up, call ``ready``, serve until :meth:`stop`, and take the device down again."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            with told(f"{type(self.device).__name__}.setup"):
                self.device.setup()
        except BaseException:
            self.loop.close()
            self.device.core.close()
            raise
        try:
            with told(f"{type(self.device).__name__}.reset"):
                self.device.core.reset()
            if self._connection is not None:
                self.served.attach(self._connection, self._entry_size)
            elif self._listener is not None:
                self.loop.watch(self._listener.fileno(), self._accept)
            if ready is not None:
                ready()
            while not self.loop.stopping:
                self.step()
            self.served.detach()
            with told(f"{type(self.device).__name__}.reset"):
                self.device.core.reset()
        finally:
            self.served.detach()
            self.loop.close()
            try:
                with told(f"{type(self.device).__name__}.close"):
                    self.device.close()
            finally:
                self.device.core.close()

    def disconnect(self, reason: str = "it was disconnected by hand") -> bool:
        """Let the client go, and the next one come; False where there is none. Call it on the loop's thread."""
        if self.served.session is None:
            return False
        self.served.detach(reason)
        if self._listener is None:
            self.loop.stop()
        else:
            self.loop.watch(self._listener.fileno(), self._accept)
        return True

    def stop(self) -> None:
        """End :meth:`run`; from any thread or signal handler."""
        self.loop.stop()

    def step(self) -> None:
        """One turn of the loop: wait for something, and handle it."""
        ready: dict[int, int] = {}
        try:
            ready = self.served.wait()
            self.served.turn(ready)
        except VfioUserError as error:
            log.log(logging.WARNING if isinstance(error, FramingError) else logging.INFO, "client gone: %s", error)
            self.disconnect(str(error))
        self.loop.run(ready)
        self.loop.run_timers()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        log.info("client connected")
        self.loop.unwatch(self._listener.fileno())
        self.served.attach(connection, self._entry_size)
