"""A worker: one device, one listening socket, one client at a time, one loop."""

from __future__ import annotations

import dataclasses
import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterable

from bellwire.device import PciDevice
from bellwire.errors import BellwireError, StateError
from bellwire.filters import Filter
from bellwire.filters.told import tell_at_debug, tell_no_more
from bellwire.serve.blame import put_in, told
from bellwire.serve.busy_poll import BusyPoll
from bellwire.serve.loop import Loop
from bellwire.serve.observer import Observer
from bellwire.serve.remembered import Remembered
from bellwire.serve.served import RECOVERING as RECOVERING
from bellwire.serve.served import Served
from vfio_user import RATIFIED, SERVER, Dialect, Estate, FramingError, Kept, Ledger, VfioUserError

TAKEN = {errno.EAGAIN, errno.EBUSY, errno.EADDRINUSE}
TRYING = "trying"
"""The ledger's entry while newer code is tried: if the process ends meanwhile, its successor has the code of before."""
SWITCH_INTERVAL = 1e-5  # seconds: a background thread must not hold up a ring for 5 ms

log = logging.getLogger("bellwire.worker")


class Worker:
    """Runs ``device`` for the clients of ``listener``, one after the other. A second client waits for its turn.

    With ``connection`` in place of a listener, the worker serves that client and ends with it. ``busy_poll`` is the
    time in seconds that the loop may poll for work before it sleeps; 0 turns busy polling off.

    A client that has not sent VERSION within ``hello_timeout`` seconds is disconnected; 0 lets it wait for ever. It may
    have ``max_maps`` maps of its memory at a time. ``filters`` stand before the device from its first client on.

    ``ledger`` is told of all that a successor needs. ``estate`` is what the ledger of a worker has that has died while
    it served a client: this worker goes on with that client. ``replaceable`` allows :meth:`replace`; it keeps every
    descriptor of the client twice.
    """

    def __init__(
        self,
        device: PciDevice,
        listener: socket.socket | None = None,
        *,
        connection: socket.socket | None = None,
        observer: Observer | None = None,
        dialect: Dialect = RATIFIED,
        busy_poll: float = 0.0,
        max_maps: int = SERVER.max_dma_maps,
        hello_timeout: float = 0.0,
        ledger: Ledger | None = None,
        estate: Estate | None = None,
        filters: Iterable[Filter] = (),
        replaceable: bool = False,
    ) -> None:
        self.device = device
        self.loop = Loop()
        if busy_poll:
            self.loop.busy_poll = BusyPoll(busy_poll)
        limits = dataclasses.replace(SERVER, max_dma_maps=max_maps)
        self._observer, self._limits = observer, limits
        self._remembered = Remembered(ledger, estate) if replaceable else None
        self._ledger = self._remembered or ledger
        self.served = Served(device, self.loop, observer, limits, self._ledger)
        self._estate = estate
        self.left = False
        """Whether client and state are left to a successor."""
        self._hello_timeout = hello_timeout
        self._filters = filters
        self._listener = listener
        self._connection = connection
        self._dialect = dialect
        if listener is not None:
            listener.setblocking(False)

    def run(self, ready: Callable[[], None] | None = None, taking_over: Callable[[], None] = lambda: None) -> None:
        """Set the device up, call ``ready``, serve clients until :meth:`stop`, and close the device.

        ``taking_over`` is called when the device is set up and about to go on with a client of another process.
        """
        sys.setswitchinterval(SWITCH_INTERVAL)
        if self._estate is not None:
            self.served.bequeathed(self._estate)
        try:
            with told(f"{type(self.device).__name__}.setup"):
                self.device.setup()
        except BaseException:
            self.served.lasting.close()
            self.loop.close()
            self.device.core.close()
            raise
        try:
            with told(f"{type(self.device).__name__}.reset"):
                self.device.core.reset()
            tell_at_debug(self.served.filters)
            for each in self._filters:
                put_in(each, self.served.filters)
            if self._estate is not None:
                taking_over()
                self._succeed(self._estate)
            elif self._connection is not None:
                self._attach(self._connection)
            elif self._listener is not None:
                self.loop.watch(self._listener.fileno(), self._accept)
            if ready is not None:
                ready()
            while not self.loop.stopping:
                self.step()
            if not self.left:
                self.served.detach()
                with told(f"{type(self.device).__name__}.reset"):
                    self.device.core.reset()
        finally:
            self.served.leave()
            self.served.lasting.close()
            self.served.filters.clear()
            self.loop.close()
            if self._remembered is not None:
                self._remembered.close()
            try:
                with told(f"{type(self.device).__name__}.close"):
                    self.device.close()
            finally:
                self.device.core.close()

    def _succeed(self, estate: Estate) -> None:
        try:
            self.served.take_over(estate, self._dialect)
            if TRYING in estate and self._ledger is not None:
                self._ledger.drop(TRYING)
        except VfioUserError as error:
            log.info("client gone: %s", error)
            self.disconnect(str(error))
        else:
            if self.served.session is None and self._listener is not None:
                self.loop.watch(self._listener.fileno(), self._accept)
        finally:
            estate.close()

    def keep(self, *entries: Kept) -> None:
        """Let the ledger of each client have these, too."""
        self.served.also = entries
        if self.served.session is not None:
            (self._ledger or Ledger()).keep(*entries)

    def disconnect(self, reason: str = "it was disconnected by hand") -> bool:
        """Disconnect the client, so that the next one is served. False without a client. For the loop's thread only."""
        if self.served.session is None:
            return False
        self.served.detach(reason)
        if self._listener is None:
            self.loop.stop()
        else:
            self.loop.watch(self._listener.fileno(), self._accept)
        return True

    def replace(self, device: PciDevice) -> None:
        """Let ``device``, made of newer code, go on in the place of the present one, with its state and its client.

        For the loop's thread only, between two turns. The new device is set up while the present one still has its
        files open. If one of these cannot be opened twice (an image that is locked, a socket, a tap), the present
        device closes its files first. Whatever is raised comes out, as a StateError that says why the state does not
        fit. The new device is closed then, and the present one goes on as if nothing had been tried; if its files were
        closed, another instance of its class does.
        """
        tell_no_more(self.served.filters)
        if self._remembered is not None and self.served.session is not None:
            self._remembered.keep(Kept(TRYING, {}, ()))
        try:
            self._replace(device)
        finally:
            tell_at_debug(self.served.filters)
            if self._remembered is not None:
                self._remembered.drop(TRYING)

    def _replace(self, device: PciDevice) -> None:
        if self._remembered is None or len(self.served.filters):
            device.core.close()
            raise StateError("its code cannot be exchanged while filters look at the device: take them out first")
        if self.served.migrating:
            device.core.close()
            raise StateError("its code cannot be exchanged while it migrates")
        self.served.core.finish_jobs()
        try:
            new = self._set_up(device)
        except BellwireError as error:
            if not in_use(error):
                raise
            self._replace_apart(_another(device))
        else:
            if device.awaits:  # the present device has its files
                new.lasting.close()
                self._close(device)
                self._replace_apart(_another(device))
                return
            old, before = self.served, self.device
            self._go_on(new, self._remembered.estate(), connected=old.session is not None)
            old.leave()
            self._close(before)

    def _replace_apart(self, device: PciDevice) -> None:
        """Replace the present device, which closes its files first. Its state stays where it is meanwhile."""
        assert self._remembered is not None
        old, before, connected = self.served, self.device, self.served.session is not None
        first, second = self._remembered.estate(), self._remembered.estate()
        old.leave()
        self._close_files(before)
        try:
            self._go_on(self._set_up(device), first, connected=connected)
        except BaseException:
            try:
                self._go_on(self._set_up(_another(before)), second, connected=connected)
            except BaseException as error:
                log.critical("neither the new code nor the old one can go on", exc_info=error)
                raise SystemExit(1) from error  # a successor can: state and client are the ledger's
            raise
        finally:
            first.close()
            second.close()
            before.core.close()

    def _set_up(self, device: PciDevice) -> Served:
        """Set a device up that is to take the place of the present one. It is closed if that fails."""
        new = Served(device, self.loop, self._observer, self._limits, self._ledger)
        lasting = self.served.lasting.estate()
        new.bequeathed(lasting)
        try:
            with told(f"{type(device).__name__}.setup"):
                device.setup()
        except BaseException:
            new.lasting.close()
            device.core.close()
            raise
        finally:
            lasting.close()
        return new

    def _go_on(self, new: Served, estate: Estate, *, connected: bool) -> None:
        """Have a device that is set up go on with state and client. It is closed, and the present one stays, if not."""
        old, device = self.served, new.core.device
        try:
            with told(f"{type(device).__name__}.reset"):
                device.core.reset()
            if connected:
                new.take_over(estate, self._dialect, died=False)
            else:
                device.core.take_over(self.device.core.state.files, client=False, died=False)
        except BaseException as error:
            new.leave()
            new.lasting.close()
            if connected:
                old.keep_state()
            self._close(device)
            if isinstance(error, SystemExit):  # of device code: the process serves on
                raise StateError(f"{type(device).__name__} raises SystemExit: {error}") from error
            raise
        finally:
            estate.close()
        old.lasting.close()
        self.served, self.device = new, device

    def _close(self, device: PciDevice) -> None:
        """Close a device that does not serve any more. An error of its code is logged."""
        try:
            self._close_files(device)
        finally:
            device.core.close()

    def _close_files(self, device: PciDevice) -> None:
        device.core.forget()
        try:
            device.close()
        except Exception:
            log.exception("%s.close failed", type(device).__name__)

    def leave(self) -> None:
        """End :meth:`run`, and leave client and state to a successor. For the loop's thread only."""
        self.served.keep_state()
        self.left = True
        self.stop()

    def stop(self) -> None:
        """End :meth:`run`. Any thread or signal handler may call it."""
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
        if ready:
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
        self._attach(connection)

    def _attach(self, connection: socket.socket) -> None:
        self.served.attach(connection, self._dialect)
        if self._hello_timeout:
            self.served.overdue = self.loop.after(self._hello_timeout, self._silent)

    def _silent(self) -> None:
        """The client has had its time for VERSION."""
        reason = f"it has sent no VERSION within {self._hello_timeout:g} s"
        log.warning("client gone: %s", reason)
        self.disconnect(reason)


def in_use(error: BaseException | None) -> bool:
    """Whether an error comes from a file, a socket or an interface that somebody has already."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno in TAKEN:
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _another(device: PciDevice) -> PciDevice:
    """An instance of the same code with the same options, not yet set up."""
    return type(device)(**device.core.options)
