"""A device type of the tests' own: it sends back what it is sent."""

from __future__ import annotations

from bellwire.virtio import Chain, VirtioDevice, Virtqueue, field

COLOUR = 5


class Echo(VirtioDevice, kind=63, queues=3, queue_size=64, class_code=0xFF0000):
    """Echoes on queues 0 and 1; queue 2 keeps what it gets until it is told to let go."""

    size = field(0x00, size=8)
    hue = field(0x08, size=2, access="rw", reset=7)

    def setup(self) -> None:
        self.held: list[Chain] = []
        self.life: list[str] = []

    def features(self) -> set[int]:
        return {COLOUR}

    def started(self) -> None:
        self.life.append("started")

    def stopped(self) -> None:
        self.life.append("stopped")
        self.held.clear()

    def notified(self, queue: Virtqueue) -> None:
        for chain in queue:
            if queue.index == 2:
                self.held.append(chain)
            else:
                chain.write(chain.read()[::-1])
                chain.done()

    def let_go(self) -> None:
        for chain in self.held:
            chain.write(chain.read())
            chain.done()
        self.held.clear()
        self.virtqueues[2].flush()

    @size.read
    def read_size(self) -> int:
        return len(self.held)
