"""A queue in other hands: its kick and its call are eventfds that another process, or the kernel, reads and writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vfio_user.eventfds import SIZE, signal, take

if TYPE_CHECKING:
    from bellwire.virtio.device import VirtioDevice
    from bellwire.virtio.virtqueue import Virtqueue

Take = Callable[[int], None]
"""Takes a descriptor, which stays the giver's."""


class Handover:
    """Keeps the two wires of one queue in other hands, as long as the queue is there.

    The *kick* is the eventfd of the doorbell. A ring that arrives as a message is passed on (:meth:`ring`).

    The *call* is the eventfd by which the client interrupts the guest, as long as a signal may go there. While the
    vector is masked, or the driver uses INTx, it is an eventfd of this object's own: each signal in it goes the usual
    way, by :meth:`VirtioDevice.interrupt`, so that it stays pending if it must.

    The other side has these eventfds too. It may fill them, and set them to blocking: nothing here waits for them.
    """

    def __init__(self, queue: Virtqueue, kick: Take, call: Take) -> None:
        self._device: VirtioDevice = queue.device
        self._queue = queue
        self._kick = kick
        self._call = call
        self._counter = bytearray(SIZE)
        self._own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bell: int | None = None
        self._given: int | None = None
        self._watched = False
        with ExitStack() as failed:
            failed.callback(self._release)
            self.renew()
            failed.pop_all()

    @property
    def direct(self) -> bool:
        """Whether interrupts go to the guest without this process."""
        return self._given not in (None, self._own)

    def renew(self) -> None:
        """Hand over again what is another descriptor by now. Called when wires have changed."""
        device, queue = self._device, self._queue
        bell = device.lend_doorbell(queue)
        if bell != self._bell:
            self._bell = bell
            if bell is not None:
                self._kick(bell)
        fd = device.irq[queue.vector].fd if queue.vector < len(device.irq) else None
        given = self._own if fd is None else fd
        if given != self._given:
            self._given = given
            self._call(given)
        self._watch(device.bus_master)
        if self.direct:
            self._called()  # what came before the change

    def ring(self) -> None:
        """Pass a ring on."""
        if self._bell is not None:
            os.set_blocking(self._bell, False)
            signal(self._bell)

    def close(self) -> None:
        """Take the doorbell back. The other side has been stopped. What it has signalled before still goes out."""
        if self._device.running:  # not after a reset
            self._called()
        self._release()

    def _release(self) -> None:
        self._watch(False)
        os.close(self._own)
        self._device.take_back_doorbell(self._queue)

    def _watch(self, wanted: bool) -> None:
        """Watch the own eventfd, while an interrupt may be raised."""
        if wanted != self._watched:
            self._watched = wanted
            if wanted:
                self._device.watch(self._own, self._called)
            else:
                self._device.unwatch(self._own)

    def _called(self) -> None:
        """The other side has signalled the own eventfd: interrupt the driver."""
        if self._device.bus_master and take(self._own, self._counter):
            self._device.interrupt(self._queue.vector)
