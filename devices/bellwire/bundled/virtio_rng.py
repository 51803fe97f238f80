"""virtio-rng: random bytes for the guest (virtio 1.2 §5.4)."""

from __future__ import annotations

import os

from bellwire import Option
from bellwire.virtio import VirtioDevice, Virtqueue

LARGEST = 4096  # bytes for one buffer: the driver asks again


class VirtioRng(VirtioDevice, kind=4, class_code=0x00FF00, name="virtio-rng"):
    """Gives the guest what getrandom(2) gives us, as fast as it asks or at a rate."""

    rate = Option(0, help="bytes a second at most; 0: as many as it wants")

    def stopped(self) -> None:
        """A reset has cancelled the timer too."""
        self.resting = False

    def notified(self, queue: Virtqueue) -> None:
        """Fill what there is; at a rate, one buffer at a time."""
        if self.resting:
            return
        for chain in queue:
            chain.write(os.getrandom(min(chain.room, LARGEST)))
            chain.done()
            if self.rate:
                self.resting = True
                self.after(chain.written / self.rate, self.rested, queue)
                break

    def rested(self, queue: Virtqueue) -> None:
        """The bytes given have been paid for with time."""
        self.resting = False
        self.attend(queue)
