"""Hostile clients: streams of messages, right and wrong, with descriptors of every kind."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import NamedTuple

from protocol.backend import ERROR, NO_REPLY, PLAIN, QEMU_PROPOSAL, REPLY, FakeDevice, Server, message
from vfio_user import Command, IrqIndex, VfioUserError

OWN = "the attacker's own socket"
KINDS = ["eventfd"] * 4 + ["memory"] * 4 + ["pipe", "socket", "null", "directory", "epoll", OWN]
NUMBERS = [0, 1, 2, 4, 8, 9, 16, 32, 4096, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]
Makers = list[Callable[[], tuple[int, bytes, list[str]]]]
SIZES = [0, 15, 17, 1 << 20, 1 << 21, (1 << 32) - 1]  # that do not fit what follows


class Piece(NamedTuple):
    """What is sent at once: bytes, and kinds of descriptors with them."""

    data: bytes
    fds: list[str]


class Attack:
    """The pieces of one connection: mostly good commands, some spoilt, and often nonsense at the end.

    The same seed gives the same attack, and a smaller ``length`` the beginning of it.
    """

    def __init__(self, seed: int, length: int) -> None:
        self._random = Random(seed)
        self.reads = self._random.random() < 0.8  # its replies
        self.pieces: list[Piece] = []
        if self._random.random() < 0.9:
            self.pieces.append(Piece(message(Command.VERSION, bytes(4) + QEMU_PROPOSAL), []))
        for _ in range(length):
            self._add(*self._command())
        if self._random.random() < 0.6:
            self._add(self._nonsense(), self._fds())

    def _command(self) -> tuple[bytes, list[str]]:
        choose = self._random
        command, payload, fds = choose.choice(self._good())()
        if choose.random() < 0.2:
            payload = self._spoilt(payload)
        if choose.random() < 0.1:
            fds = self._fds()
        kinds = [0, NO_REPLY] * 10 + [REPLY, REPLY | ERROR, ERROR, 2, (1 << 32) - 1]
        if command in (Command.DMA_READ, Command.DMA_WRITE):
            kinds += [REPLY] * 20
        return message(command, payload, id=choose.randrange(6), flags=choose.choice(kinds)), fds

    def _good(self) -> Makers:
        """Makers of commands that have the right shape, though not always the right values."""
        one = self._random.choice
        upto = self._random.randrange

        def dma_map() -> tuple[int, bytes, list[str]]:
            fds = ["memory"] * upto(2)
            flags = one([1, 3, 3, 3, 7 if fds else 3, 0, 11])
            sizes = one([0, 0, 4096, 100]), upto(8) << 12, one([1, 1, 2, 4]) << 12
            return Command.DMA_MAP, struct.pack("<IIQQQ", 32, flags, *sizes), fds

        def dma_unmap() -> tuple[int, bytes, list[str]]:
            flags = one([0, 0, 0, 0, 2])
            where = (0, 0) if flags else (upto(8) << 12, one([1, 1, 2, 4]) << 12)
            return Command.DMA_UNMAP, struct.pack("<IIQQ", 24, flags, *where), []

        def set_irqs() -> tuple[int, bytes, list[str]]:
            kind, action, index, start, count = one([1, 2, 4, 4]), one([8, 16, 32, 32]), one([0, 2]), upto(4), upto(5)
            start = 0 if index == 0 or count == 0 else start
            count = min(count, 1) if index == 0 else count
            data = self._random.randbytes(count) if kind == 2 else b""
            head = struct.pack("<IIIII", 20 + len(data), kind | action, index, start, count)
            return Command.DEVICE_SET_IRQS, head + data, ["eventfd"] * (count if kind == 4 and upto(4) else 0)

        def write() -> tuple[int, bytes, list[str]]:
            data = self._random.randbytes(upto(9))
            return Command.REGION_WRITE, struct.pack("<QII", upto(64), upto(4), len(data)) + data, []

        def write_multi() -> tuple[int, bytes, list[str]]:
            count = upto(4)
            entries = [struct.pack("<QIIQ", upto(4096), upto(4), 1 + upto(8), upto(1 << 64)) for _ in range(count)]
            return Command.REGION_WRITE_MULTI, struct.pack("<Q", count) + b"".join(entries), []

        def getter() -> tuple[int, bytes, list[str]]:
            layouts = {4: "IIII", 5: "IIIIQQ", 6: "IIII", 7: "IIII"}
            command = one(list(layouts))
            fields = [one([16, 32, 80, 4096]), 0, upto(10)] + [0] * (len(layouts[command]) - 3)
            return command, struct.pack("<" + layouts[command], *fields), []

        def answer() -> tuple[int, bytes, list[str]]:
            return one([Command.DMA_READ, Command.DMA_WRITE]), struct.pack("<QQ", upto(64) << 8, 256) + bytes(256), []

        def anything() -> tuple[int, bytes, list[str]]:
            return upto(20), b"".join(struct.pack("<Q", one(NUMBERS)) for _ in range(upto(6))), []

        read = struct.pack("<QII", one([0, 8, 4095]), upto(10), one([0, 1, 8, 256]))
        rare = [
            getter,
            answer,
            anything,
            lambda: (Command.REGION_READ, read, []),
            lambda: (Command.DEVICE_RESET, b"", []),
        ]
        return [dma_map, dma_map, dma_unmap, set_irqs, set_irqs, set_irqs, write, write, write_multi, *rare]

    def _spoilt(self, payload: bytes) -> bytes:
        choose = self._random
        match choose.randrange(3):
            case 0:
                return payload[: choose.randrange(len(payload) + 1)]
            case 1:
                return payload + choose.randbytes(choose.choice([1, 16, 5000]))
        spoilt = bytearray(payload or b"!")
        at = choose.randrange(len(spoilt))
        spoilt[at : at + 8] = struct.pack("<Q", choose.choice(NUMBERS))[: len(spoilt) - at]
        return bytes(spoilt)

    def _nonsense(self) -> bytes:
        choose = self._random
        data, _ = self._command()
        return choose.choice(
            [
                data[:4] + struct.pack("<I", choose.choice(SIZES)) + data[8:],
                data[: choose.randrange(1, len(data))],
                choose.randbytes(choose.randrange(1, 60)),
            ]
        )

    def _fds(self) -> list[str]:
        return self._random.choices(KINDS, k=self._random.choice([0, 1, 2, 20]))

    def _add(self, data: bytes, fds: list[str]) -> None:
        """In one piece, or in two with descriptors at both."""
        cut = self._random.choice([0, 0, 0, 1, 15, 16, 17, 20])
        parts = [Piece(data[:cut], fds[:1]), Piece(data[cut:], fds[1:])] if cut else [Piece(data, fds)]
        self.pieces += [part for part in parts if part.data]


@contextlib.contextmanager
def descriptors() -> Iterator[dict[str, int]]:
    """One descriptor of each kind."""
    with ExitStack() as stack:
        pool = {
            "eventfd": os.eventfd(0, os.EFD_NONBLOCK),
            "memory": os.memfd_create("hostile"),
            "null": os.open("/dev/null", os.O_RDWR),
            "directory": os.open("/", os.O_RDONLY),
        }
        os.ftruncate(pool["memory"], 0x8000)
        pool["pipe"], other = os.pipe()
        for fd in (*pool.values(), other):
            stack.callback(os.close, fd)
        for sock in socket.socketpair():
            pool["socket"] = stack.enter_context(sock).fileno()
        pool["epoll"] = stack.enter_context(select.epoll()).fileno()
        yield pool


def carry_out(attack: Attack, sock: socket.socket, pool: dict[str, int]) -> None:
    """Send it all, or as much as the server takes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        for data, kinds in attack.pieces:
            sock.settimeout(1.0)
            fds = [sock.fileno() if kind == OWN else pool[kind] for kind in kinds]
            sent = socket.send_fds(sock, [data], fds) if fds else 0
            sock.sendall(data[sent:])
            if attack.reads:
                read_away(sock)


def read_away(sock: socket.socket) -> None:
    """Read whatever is there, and close the descriptors that come with it."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 65536, 253)
            for fd in fds:
                os.close(fd)
            if not data:
                return


def arm(device: FakeDevice, server: Callable[[], Server]) -> None:
    """Have each register write do DMA and raise interrupts, as a device would."""

    def hook(region: int, offset: int, data: memoryview) -> None:
        session = server().session
        device.store(region, offset, data)
        for vector in range(8):
            session.irqs.trigger(IrqIndex.MSIX, vector)
        session.irqs.set_level(offset % 2 == 0)
        with contextlib.suppress(VfioUserError):
            for segment in session.dma.segments(offset << 8, 256, True):
                if segment.view is None:
                    session.dma_write(segment.address, session.dma_read(segment.address, segment.size))
                else:
                    segment.view[:] = segment.view[::-1]

    device.on_write = hook
    device.memory[PLAIN][:] = bytes(len(device.memory[PLAIN]))
