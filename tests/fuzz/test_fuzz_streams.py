"""Streams from outside: bytes of a pty or a socket for a serial port, and frames of a stream for a network card."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import time
from pathlib import Path

from bellwire.bundled.serial import Serial
from bellwire.network.sockets import LARGEST_FRAME, StreamLink
from bellwire.stream.backends import Pty
from bellwire.testing import Guest
from fuzz.fuzzing import fuzz, mutated

PATIENCE = 30.0
FRAMES = [(60).to_bytes(4, "big") + bytes(60), (14).to_bytes(4, "big") + b"x" * 14, (1514).to_bytes(4, "big")]


def attack(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        receive_frames(Path(folder, "net"), data)
        receive_bytes(Path(folder, "tty"), data)


def receive_frames(path: Path, data: bytes) -> None:
    """After nonsense, the next peer's frame arrives."""
    buffers = [memoryview(bytearray(size)) for size in (64, 100, LARGEST_FRAME)]
    with contextlib.closing(StreamLink(path, listen=True)) as link:
        for sent in (data, FRAMES[0]):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(os.fspath(path))
                peer.setblocking(False)
                link.receive(buffers)
                with contextlib.suppress(OSError):
                    peer.send(sent)
                sizes = [link.receive(buffers) for _ in range(len(sent) + 2)]
            while link.receive(buffers):
                pass
        assert max(sizes) >= 60


def receive_bytes(path: Path, data: bytes) -> None:
    """The guest reads each byte that arrives, and the port works on."""
    with Guest(Serial, backend=f"unix:{path}") as guest, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(os.fspath(path))
        peer.setblocking(False)
        read_all(guest, peer.fileno(), data)
    with Guest(Serial) as guest:
        assert isinstance(guest.device.stream, Pty)
        far = os.open(guest.device.stream.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            read_all(guest, far, data)
        finally:
            os.close(far)


def read_all(guest: Guest[Serial], far: int, data: bytes) -> None:
    guest.poll()
    if data:
        os.write(far, data[:256])
    os.write(far, b"x")
    end, last = time.monotonic() + PATIENCE, b""
    while last != b"x" and time.monotonic() < end:
        select.select([guest.device.stream], [], [], 0.01)  # the kernel hands bytes of a pty on a little later
        guest.poll()
        while guest.read(Serial.lsr) & 1:
            last = bytes([guest.read(Serial.data)])
    assert last == b"x"


SEEDS = [b"".join(FRAMES), *FRAMES, b"\x00\x01\x00\x00" + b"y" * 70]
test_corpus, test_briefly, test_long = fuzz(attack, mutated(SEEDS, 1 << 14), "streams")
