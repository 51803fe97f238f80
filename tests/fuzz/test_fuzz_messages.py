"""Any bytes in place of a client's messages, after its VERSION. The session then still has its next client served."""

from __future__ import annotations

import contextlib
import socket
import struct
from contextlib import closing

from fuzz.fuzzing import fuzz, mutated
from protocol.backend import NO_REPLY, PLAIN, QEMU_PROPOSAL, FakeDevice, Link, message
from vfio_user import RATIFIED, Command, Dialect, VfioUserError

VERSION = message(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
SEEDS = [
    message(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x1000)),
    message(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000)),
    message(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
    message(Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 1, 0, 0, 0)),
    message(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0)),
    message(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0)),
    message(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 0, 0)),
    message(Command.REGION_READ, struct.pack("<QII", 0, PLAIN, 8)),
    message(Command.REGION_WRITE, struct.pack("<QII", 0, PLAIN, 4) + b"abcd", flags=NO_REPLY),
    message(Command.REGION_WRITE_MULTI, struct.pack("<Q", 1) + struct.pack("<QII8s", 0, PLAIN, 4, b"abcd")),
    message(Command.DEVICE_FEATURE, struct.pack("<II", 8, 0)),
    message(Command.DEVICE_FEATURE, struct.pack("<IIIIIIQQ", 40, 1 << 16 | 11, 1, 2, 0, 1, 4096, 4096)),
    message(Command.DEVICE_RESET),
]


def attack(data: bytes, dialect: Dialect = RATIFIED) -> None:
    with closing(FakeDevice()) as device:
        with closing(Link(device, dialect=dialect)) as link:
            link.greet()
            link.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                link.sock.send(data)
            link.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(VfioUserError):
                while True:
                    link.session.service()
        assert device.failures == []
        with closing(Link(device)) as link:
            assert link.greet().error == 0


test_corpus, test_briefly, test_long = fuzz(attack, mutated([*SEEDS, b"".join(SEEDS)]), "messages")
