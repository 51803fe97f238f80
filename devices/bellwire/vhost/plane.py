"""A virtio device's data plane in a back end's hands: when its rings run, and what happens when one of the two goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bellwire.errors import GuestError, StateError
from bellwire.vhost.backend import Backend, Listener, Open, check
from bellwire.vhost.bequest import Adopt, Bequest
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece, overlap, pieces
from bellwire.vhost.resume import lie_in, resume, ring_of, set_base
from bellwire.virtio import Feature, Virtqueue

if TYPE_CHECKING:
    from bellwire import Timer
    from bellwire.virtio import VirtioDevice

RETRY = 0.1
"""Seconds between two tries to find a back end that has gone."""
OURS = 1 << Feature.ACCESS_PLATFORM
"""Features that the back end never hears of: its memory table has the addresses that the driver uses."""


class Plane:
    """The rings of ``device`` that a back end has: those of ``queues``, as far as the driver has enabled them.

    ``size`` is the number of bytes of the device type's configuration, ``needs`` the number of queues (or of pairs) in
    the back end's own count. ``guess`` lets rings go on after a crash even if it is uncertain what was in flight.
    ``adopt`` goes on with a connection that a process before has left: without it, none is kept.

    The device calls :meth:`open`, :meth:`started`, :meth:`stopped`, :meth:`park` and :meth:`close` where its own
    methods of such names run, and :meth:`settle` when memory or wires have changed. Rings run while the driver is
    ready, a client is connected, bus mastering is on, the device allows it, and a back end is there. When one of these
    ends, the rings are stopped, and their positions kept.
    """

    def __init__(
        self,
        device: VirtioDevice,
        open_backend: Open,
        queues: Sequence[Virtqueue],
        *,
        needs: int,
        size: int,
        guess: bool = False,
        adopt: Adopt | None = None,
    ) -> None:
        self.backend: Backend | None = None
        self.features = 0
        """What the back end offers. While none is there: what the last one has offered."""
        self.config: bytes | None = None
        """The configuration as the back end has it; None if it has none."""
        self.running = False
        """Whether the back end has the rings."""
        self.gone = 0
        """How often a back end has gone."""
        self.queues = queues
        """The queues that are the back end's. Change them only while no rings run."""
        self.allowed = True
        """Whether the device lets the rings run. Call :meth:`settle` after a change."""
        self._device = device
        self._open = open_backend
        self._needs = needs
        self._size = size
        self._guess = guess
        self._bequest = Bequest(device, adopt)
        self._shared: list[Piece] = []
        self._started: list[Virtqueue] = []
        self._fresh = True  # the driver has just begun: nothing is in flight
        self._lost_place = False  # the positions of the rings are unknown: the back end has gone with them
        self._before: Backend | None = None
        self._found: list[Backend | BackendError] = []
        self._trying = self._closed = False
        self._said = ""
        self._timer: Timer | None = None

    @property
    def placed(self) -> bool:
        """Whether the queues say where the rings go on: not while the back end has them, or has gone with them."""
        return not self._lost_place

    # -- called by the device

    def open(self) -> None:
        """Connect. Raises BackendError if no back end can be used. A successor begins without one, and looks on."""
        known = self._bequest.described()
        try:
            self._take(self._bequest.adopted() or self._open(None))
        except BackendError as error:
            if known is None:
                raise
            self.features, self.config = known
            self._device.warn("%s; waiting for a back end", error)
            self._look_again()

    def started(self, *, sure: bool = True) -> None:
        """The driver is ready. ``sure`` is false for a restored device if its positions may be old."""
        if not sure:
            self._fresh, self._lost_place = False, True
        self.settle()

    def inherit(self) -> None:
        """Another process had the rings, and has died: what it knew of its back end is known here."""
        self._bequest.take_record()
        self._talk(lambda backend: self._shared.extend(self._bequest.inherited(backend)))

    def failed(self) -> None:
        """The state of the process before cannot be used. A back end that still has its rings is let go."""
        if self._bequest.runs:
            self._go("the rings of the back end are lost")

    def stopped(self) -> None:
        """The driver has reset the device, or another state has been restored."""
        self._talk(self._reset)
        self._fresh, self._lost_place = True, False
        if self.backend is None and self.features:
            self._look_again()  # the reset may have cancelled the timer

    def settle(self) -> None:
        """Something has changed on which the rings depend: start or stop them, or tell of other memory."""
        self._bequest.describe(self.features, self.config)
        if self.backend is not None and (self.running or self._shared or self._device.running):
            self._talk(self._settle)

    def rewire(self, renew: Callable[[], None]) -> None:
        """Wires have changed: call ``renew``, which hands over other descriptors, and settle, all within one limit."""

        def both(backend: Backend) -> None:
            renew()
            if self.backend is backend:
                self._settle(backend)

        if self.backend is None:
            renew()
        else:
            self._talk(both)

    def park(self) -> None:
        """Stop the rings, so that the queues' positions are known, for a snapshot. They go on in the next turn."""
        if self.running:
            self._talk(self._stop)
            self._device.after(0, self.settle)

    def halt(self) -> None:
        """Stop the rings until the next :meth:`settle`. Raises a StateError if their positions are unknown."""
        if self.running:
            self._talk(self._stop)
        if not self.placed:
            raise StateError("the back end has gone with the rings: wait until it is there again")

    def leave(self) -> None:
        """Another process goes on with the connection, if the ledger has it: let go of it, and let the rings run."""
        backend = self.backend
        if backend is not None and self._bequest.kept:
            self.backend, self._closed = None, True
            backend.close()
            backend.forget()
            self._take_back()

    def close(self) -> None:
        """End the connection, and the search for one."""
        self._closed = True
        backend, self.backend, self.running = self.backend, None, False
        for each in (backend, self._before, *self._found):
            if each is not None and not isinstance(each, BackendError):
                each.close()
                each.forget()
        self._bequest.close()

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver has written to the configuration."""

        def write(backend: Backend) -> None:
            backend.set_config(offset, data)
            self.config = backend.config(self._size)
            self._bequest.describe(self.features, self.config)

        self._talk(write)

    # -- rings

    def _settle(self, backend: Backend) -> None:
        device = self._device
        table = pieces(device.dma.files(), mapped=backend.needs_addresses) if device.connected else []
        wanted = device.running and device.connected and device.bus_master
        wanted = wanted and self.allowed and lie_in(table, self.queues, packed=self._packed)
        if self._bequest.due:
            self._recall(backend, wanted=wanted)
        gone, come = set(self._shared) - set(table), set(table) - set(self._shared)
        if self.running and (not wanted or overlap(gone, come)):
            self._stop(backend)
        if wanted:
            self._share(backend, table)
            if not self.running:
                self._start(backend)
        elif gone:
            self._share(backend, [each for each in table if each in self._shared])

    def _start(self, backend: Backend) -> None:
        queues = [queue for queue in self.queues if queue.enabled]
        resumed = queues if self._lost_place else []
        if resumed:
            for queue in queues:
                resume(queue, self._device.dma, packed=self._packed, sure=backend.tracks or self._guess)
        backend.accept(self._device.accepted & ~OURS)
        backend.track(len(self.queues), max(queue.size for queue in queues), fresh=self._fresh)
        for queue in queues:
            backend.start(ring_of(queue, packed=self._packed))
        self._fresh, self._lost_place, self.running = False, True, True
        rings = [queue.index for queue in queues]
        self._bequest.keep(backend, rings)
        self._hand_over(backend, queues)
        if self.backend is backend:
            self._bequest.keep(backend, rings, begun=True)
        for queue in resumed:
            self._device.interrupt(queue.vector)  # the last one may have gone before it could

    def _hand_over(self, backend: Backend, queues: Sequence[Virtqueue], *, run: bool = False) -> None:
        """Give the wires to the back end. If the rings ``run``, it has the kicks: the ledger keeps these eventfds."""
        for queue in queues:
            self._started.append(queue)
            kick = self._wire(queue, kick=True, known=run)
            queue.hand_over(kick, self._wire(queue, kick=False))
            if self.backend is not backend:  # it has gone meanwhile
                return
            if not run:
                backend.enable(queue.index, True)
        for queue in queues:
            if queue.handover is not None:
                queue.handover.ring()  # buffers may have come while nobody looked

    def _stop(self, backend: Backend) -> None:
        """Have all rings back, at the positions where they have been stopped."""
        for queue in self._started:
            set_base(queue, self._end(backend, queue), packed=self._packed)
        self._take_back()
        self._lost_place = False

    def _take_back(self) -> None:
        for queue in self._started:
            queue.take_back()
        self._started, self.running = [], False

    def _reset(self, backend: Backend) -> None:
        """Have all rings back. The queues have been reset already."""
        for queue in self._started:
            self._end(backend, queue)
        self._started, self.running = [], False
        if not self._fresh:
            backend.reset()
        if not self._bequest.runs:
            self._bequest.drop()

    def _end(self, backend: Backend, queue: Virtqueue) -> int:
        base = backend.stop(queue.index)
        backend.enable(queue.index, False)
        return base

    def _wire(self, queue: Virtqueue, *, kick: bool, known: bool = False) -> Callable[[int], None]:
        """What passes a descriptor of ``queue`` on to the back end, unless it is ``known``, and each later one."""
        first = iter([known])

        def give(fd: int) -> None:
            if not next(first, False):
                self._talk(lambda backend: (backend.kick if kick else backend.call)(queue.index, fd))

        return give

    @property
    def _packed(self) -> bool:
        return Feature.RING_PACKED in self._device.negotiated

    def _share(self, backend: Backend, table: Sequence[Piece]) -> None:
        with self._bequest.changed(backend) if list(table) != self._shared else contextlib.nullcontext():
            backend.share(table)
            self._shared = list(table)

    def _recall(self, backend: Backend, *, wanted: bool) -> None:
        """Go on with the rings that run since a process has died, if they are ``wanted``, or have them back."""
        running, rings = self._device.running, self._bequest.recall()
        queues = [queue for queue in self.queues if queue.enabled]
        if wanted and self._bequest.goes_on and [queue.index for queue in queues] == rings:
            self._fresh, self._lost_place, self.running = False, True, True
            self._bequest.keep(backend, rings, begun=True)
            self._hand_over(backend, queues, run=True)
            return
        for queue in self.queues:
            if queue.index in rings:
                base = self._end(backend, queue)
                if running:
                    set_base(queue, base, packed=self._packed)
        self._lost_place = self._lost_place and not running
        if not running:
            self._bequest.drop()
        if not self._bequest.steady:
            raise BackendLost("its worker died while guest memory changed")

    # -- the back end comes and goes

    def _talk(self, do: Callable[[Backend], None]) -> None:
        """Do something with the back end, if one is there. Whatever goes wrong with it is handled here."""
        backend = self.backend
        if backend is None:
            return
        try:
            with backend.limited():
                do(backend)
        except BackendLost as error:
            self._go(str(error))
        except BackendError as error:
            self._failed(str(error))

    def _take(self, backend: Backend) -> None:
        """Use a back end that has just been found. Raises BackendError if it cannot be used."""
        try:
            check(backend, self._device, self._needs, self.features & ~OURS)
            self.config = backend.config(self._size)
            self._bequest.pass_on(backend)
        except BackendError:
            backend.hang_up()
            raise
        self.backend, self.features, self._shared = backend, backend.features, []
        device = self._device
        backend.listen(Listener(device.watch, device.unwatch, self._go, self._failed, self._changed))

    def _go(self, why: str) -> None:
        """The back end has gone."""
        backend, self.backend = self.backend, None
        if backend is None:
            return
        backend.hang_up()
        self._bequest.drop()
        self.gone += 1
        self._take_back()
        self._before, self._shared = backend, []
        self._device.warn("%s; waiting for a back end to come back", why)
        self._look_again()

    def _look_again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._device.after(RETRY, self._look)

    def _look(self) -> None:
        """Look for a back end, on another thread: one that does not answer must not hold up the guest."""
        if self.backend is not None or self._closed:
            return
        if self._found:
            found = self._found.pop()
            try:
                if isinstance(found, BackendError):
                    raise found
                self._take(found)
            except BackendError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    self._device.warn("still without a back end: %s", error)
            else:
                self._said = ""
                self._device.log.warning("a back end is there again")
                self._device.configuration_changed()
                self.settle()
                return
        if not self._trying:
            self._trying = True
            self._device.background(self._try)
        self._look_again()

    def _try(self) -> None:
        try:
            self._found.append(self._open(self._before))
        except BackendError as error:
            self._found.append(error)
        finally:
            self._trying = False

    def _failed(self, why: str) -> None:
        """The back end cannot go on with the driver's rings."""
        with contextlib.suppress(GuestError):
            raise self._device.broken(why)
        self._device.warn("%s; the device needs a reset", why)
        self._talk(self._give_up)

    def _give_up(self, backend: Backend) -> None:
        with contextlib.suppress(BackendError):
            self._stop(backend)

    def _changed(self) -> None:
        """The back end's configuration has changed."""

        def look(backend: Backend) -> None:
            before, self.config = self.config, backend.config(self._size)
            if self.config != before:
                self._bequest.describe(self.features, self.config)
                self._device.configuration_changed()

        self._talk(look)
