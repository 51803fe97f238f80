"""The driver of a virtio network card (virtio 1.2 §5.1), as far as tests need one."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network.features import Net
from virtio.driver import Driver

HEADER = struct.Struct("<BBHHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
PATIENCE = 30.0
ALL = {Net.MAC, Net.STATUS, Net.MRG_RXBUF, Net.CTRL_VQ, Net.CTRL_RX, Net.CTRL_RX_EXTRA, Net.CTRL_MAC_ADDR}


class Packet(NamedTuple):
    """What came in: its header, and the frame."""

    header: tuple[int, ...]
    frame: bytes


class Card:
    """``features`` of the card come on top of ``ring``'s; receive queues get ``buffers`` of ``room`` bytes."""

    def __init__(
        self,
        ring: Iterable[int] = (),
        features: Iterable[int] = ALL,
        *,
        buffers: int = 8,
        room: int = 1526,
        pairs: int = 1,
        **options: Any,
    ) -> None:
        self.driver = Driver(VirtioNet, pairs=pairs, **options)
        assert isinstance(self.driver.device, VirtioNet)
        self.device = self.driver.device
        self.room = room
        count = 2 * pairs + 1 if Net.MQ in features else 3
        self.driver.start({*ring, *features}, range(count), size=64)
        self.control = self.driver.queues[count - 1]
        for pair in range(count // 2):
            self.refill(buffers, pair)
            self.driver.queues[2 * pair].kick()

    def refill(self, buffers: int, pair: int = 0) -> None:
        """More room to receive."""
        for _ in range(buffers):
            self.driver.queues[2 * pair].add(write=self.room)

    def send(self, frame: bytes, header: bytes = PLAIN, pair: int = 0) -> None:
        """Transmit one frame; it has gone when this returns."""
        queue = self.driver.queues[2 * pair + 1]
        queue.send(header, frame)
        assert len(queue.used()) == 1

    def received(self, pair: int = 0) -> list[Packet]:
        """What has come by now, put together again; its buffers are made available anew."""
        queue = self.driver.queues[2 * pair]
        answers = queue.answers()
        packets = []
        while answers:
            first = answers.pop(0)
            header = HEADER.unpack_from(first)
            more = [answers.pop(0) for _ in range(header[-1] - 1)]
            packets.append(Packet(header, b"".join([first[HEADER.size :], *more])))
            self.refill(1 + len(more), pair)
        return packets

    def await_packets(self, count: int = 1, pairs: int = 1) -> list[Packet]:
        """So many, by any of the first ``pairs``, or an AssertionError."""
        packets: list[Packet] = []
        while True:
            for pair in range(pairs):
                packets += self.received(pair)
            if len(packets) >= count:
                return packets
            assert self.driver.guest.poll(PATIENCE), "nothing came"

    def command(self, kind: int, number: int, data: bytes) -> bool:
        """A command of the control queue; whether the card has taken it."""
        self.control.send(bytes([kind, number]), data, write=1)
        (answer,) = self.control.answers()
        return answer == b"\0"

    def close(self) -> None:
        self.driver.close()
