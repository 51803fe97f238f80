"""virtio-rng: random bytes for the guest (virtio 1.2 §5.4)."""

from __future__ import annotations

from bellwire import Option, Saved, StateError, Timer
from bellwire.virtio import VirtioDevice, Virtqueue

LARGEST = 4096  # bytes for one buffer: the driver asks again


class VirtioRng(VirtioDevice, kind=4, class_code=0x00FF00, name="virtio-rng"):
    """Gives the guest random bytes from getrandom(2), with or without a limit of the rate."""

    rate = Option(0, least=0, help="the most bytes a second; 0: no limit")

    pause = Saved(0.0)
    """As :attr:`owed`, for a process that goes on with the device. A reset clears this one."""

    def setup(self) -> None:
        """Start without a pause."""
        self.owed = 0.0
        """Seconds of the pause after the last bytes; 0 if there is none."""
        self.timer: Timer | None = None

    def check_state(self) -> None:
        """Refuse a snapshot with a pause that no bytes have caused."""
        super().check_state()
        if not 0 <= self.pause <= LARGEST:
            raise StateError(f"the snapshot has a pause of {self.pause} seconds, at most {LARGEST} expected")

    def restored(self) -> None:
        """Begin the pause again that was under way."""
        self.owed = self.pause
        super().restored()

    def stopped(self) -> None:
        """Start a pause again that was under way: a reset must not end it, but may have cancelled its timer."""
        if self.owed:
            self.rest(self.owed)

    def notified(self, queue: Virtqueue) -> None:
        """Fill the available buffers. With a limit, fill one buffer, then pause."""
        if self.owed:
            return
        for chain in queue:
            chain.write(self.random_bytes(min(chain.room, LARGEST)))
            chain.done()
            if self.rate:
                self.rest(chain.written / self.rate)
                break

    def rest(self, seconds: float) -> None:
        """Pause for ``seconds``."""
        if self.timer is not None:
            self.timer.cancel()
        self.owed = self.pause = seconds
        self.timer = self.after(seconds, self.rested)

    def rested(self) -> None:
        """The pause is over: fill buffers again."""
        self.owed = self.pause = 0.0
        self.attend(self.virtqueues[0])
