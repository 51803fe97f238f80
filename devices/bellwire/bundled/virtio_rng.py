"""virtio-rng: random bytes for the guest (virtio 1.2 §5.4)."""

from __future__ import annotations

import os

from bellwire import Option, Timer
from bellwire.virtio import VirtioDevice, Virtqueue

LARGEST = 4096  # bytes for one buffer: the driver asks again


class VirtioRng(VirtioDevice, kind=4, class_code=0x00FF00, name="virtio-rng"):
    """Gives the guest what getrandom(2) gives us, as fast as it asks or at a rate."""

    rate = Option(0, least=0, help="the most bytes a second; 0: no limit")

    def setup(self) -> None:
        """No bytes have been given yet."""
        self.owed = 0.0
        """Seconds for which the bytes given last are to be paid."""
        self.timer: Timer | None = None

    def stopped(self) -> None:
        """A reset pays for nothing, and may have cancelled the timer."""
        if self.owed:
            self.rest(self.owed)

    def notified(self, queue: Virtqueue) -> None:
        """Fill what there is; at a rate, one buffer at a time."""
        if self.owed:
            return
        for chain in queue:
            chain.write(os.getrandom(min(chain.room, LARGEST)))
            chain.done()
            if self.rate:
                self.rest(chain.written / self.rate)
                break

    def rest(self, seconds: float) -> None:
        """Give nothing for so long."""
        if self.timer is not None:
            self.timer.cancel()
        self.owed = seconds
        self.timer = self.after(seconds, self.rested)

    def rested(self) -> None:
        """The bytes given have been paid for with time."""
        self.owed = 0.0
        self.attend(self.virtqueues[0])
