"""Hostile clients: streams of messages, right and wrong, with descriptors of every kind."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from hypothesis import strategies as st

from protocol.backend import ERROR, NO_REPLY, PLAIN, QEMU_PROPOSAL, REPLY, FakeDevice, Server, message
from vfio_user import Command, IrqIndex, VfioUserError

OWN = "the attacker's own socket"
LAYOUTS = {
    Command.DMA_MAP: "IIQQQ",
    Command.DMA_UNMAP: "IIQQ",
    Command.DEVICE_GET_INFO: "IIII",
    Command.DEVICE_GET_REGION_INFO: "IIIIQQ",
    Command.DEVICE_GET_REGION_IO_FDS: "IIII",
    Command.DEVICE_GET_IRQ_INFO: "IIII",
    Command.DEVICE_SET_IRQS: "IIIII",
    Command.REGION_READ: "QII",
    Command.REGION_WRITE: "QII",
    Command.DMA_READ: "QQ",
    Command.DMA_WRITE: "QQ",
    Command.DEVICE_RESET: "",
    Command.REGION_WRITE_MULTI: "QQIIQ",
    Command.DEVICE_FEATURE: "II",
    Command.MIG_DATA_READ: "II",
    Command.MIG_DATA_WRITE: "II",
}
LIKELY = [0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 24, 32, 0x14, 0x21, 0x24, 0x0C, 80, 4096, 0x2000, 1 << 20, 1 << 31]
WORDS = st.sampled_from([*LIKELY, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)
LONGS = st.sampled_from([*LIKELY, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
FLAGS = st.sampled_from([0, 0, 0, 0, NO_REPLY, REPLY, REPLY | ERROR, ERROR, 2]) | WORDS


def _well_formed(command: Command) -> st.SearchStrategy[bytes]:
    """A payload of the right shape whose data has the right length."""
    match command:
        case Command.REGION_WRITE:
            return st.builds(
                lambda at, region, data: struct.pack("<QII", at, region, len(data)) + data,
                st.integers(0, 4096),
                st.integers(0, 9),
                st.binary(max_size=16),
            )
        case Command.DEVICE_SET_IRQS:
            actions = st.sampled_from([8, 16, 32])
            return st.builds(
                lambda kind, action, index, start, count: struct.pack("<IIIII", 20, kind | action, index, start, count),
                st.sampled_from([1, 4]),
                actions,
                st.integers(0, 3),
                st.integers(0, 8),
                st.integers(0, 8),
            )
        case Command.DMA_MAP:
            return st.builds(
                lambda flags, offset, page, pages: struct.pack("<IIQQQ", 32, flags, offset, page << 12, pages << 12),
                st.integers(0, 15),
                st.sampled_from([0, 4096, 100]),
                st.integers(0, 16),
                st.integers(0, 4),
            )
    fields = [LONGS if kind == "Q" else WORDS for kind in LAYOUTS[command]]
    return st.tuples(*fields).map(lambda values: struct.pack("<" + LAYOUTS[command], *values))


def _mutated(payload: bytes, how: tuple[str, int, int]) -> bytes:
    kind, at, value = how
    match kind:
        case "cut":
            return payload[: at % (len(payload) + 1)]
        case "grow":
            return payload + bytes([value]) * (at % 5000)
        case "flip" if payload:
            spoilt = bytearray(payload)
            spoilt[at % len(payload)] ^= value
            return bytes(spoilt)
    return payload


MUTATIONS = st.tuples(
    st.sampled_from(["none", "none", "none", "cut", "grow", "flip"]), st.integers(0, 9999), st.integers(0, 255)
)
PAYLOADS = st.sampled_from(list(LAYOUTS)).flatmap(
    lambda command: st.tuples(st.just(int(command)), _well_formed(command) | st.binary(max_size=64))
)
HELLO = st.integers(0, 3).map(lambda minor: message(Command.VERSION, struct.pack("<HH", 0, minor) + QEMU_PROPOSAL))


def _message(body: tuple[int, bytes], how: tuple[str, int, int], flags: int, id: int, lie: int | None) -> bytes:
    command, payload = body
    data = message(command, _mutated(payload, how), id=id, flags=flags)
    return data if lie is None else data[:4] + struct.pack("<I", lie) + data[8:]


MESSAGES = st.builds(
    _message,
    PAYLOADS | st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=64)),
    MUTATIONS,
    FLAGS,
    st.integers(0, 4) | st.integers(0, 0xFFFF),
    st.sampled_from([None] * 30 + [0, 15, 16, 17, 1 << 20, 1 << 21, (1 << 32) - 1]),
)
KINDS = ["eventfd", "eventfd", "eventfd", "memory", "memory", "pipe", "socket", "null", "directory", "epoll", OWN]


class Piece(NamedTuple):
    """What is sent at once: bytes, and kinds of descriptors with them."""

    data: bytes
    fds: list[str]


PIECES = st.builds(
    lambda data, cut, fds: [Piece(data[:cut], fds[:4]), Piece(data[cut:], fds[4:])] if cut else [Piece(data, fds)],
    MESSAGES | MESSAGES | MESSAGES | HELLO | st.binary(max_size=40),
    st.sampled_from([0, 0, 0, 1, 15, 16, 17, 20]),
    st.lists(st.sampled_from(KINDS), max_size=3) | st.lists(st.sampled_from(KINDS), max_size=20),
)


class Attack(NamedTuple):
    """A connection's worth of pieces; whether it begins as it should, and whether its replies are read."""

    polite: bool
    reads: bool
    pieces: list[list[Piece]]


ATTACKS = st.builds(
    Attack,
    st.sampled_from([True, True, True, False]),
    st.sampled_from([True, True, True, False]),
    st.lists(PIECES, max_size=15),
)


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
    pieces = [piece for some in attack.pieces for piece in some if piece.data]
    if attack.polite:
        pieces.insert(0, Piece(message(Command.VERSION, bytes(4) + QEMU_PROPOSAL), []))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        for data, kinds in pieces:
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
