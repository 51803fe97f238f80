"""Any bytes in place of a server's replies and commands to a client."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from fuzz.fuzzing import fuzz, mutated
from protocol.backend import MAPPED, PLAIN, FakeDevice, served
from vfio_user import RATIFIED, Client, Dialect, FeatureFlags, IrqIndex, VfioUserError
from vfio_user.io_fds import IoEventFd, descriptors
from vfio_user.message import close_fds


def talk(client: Client) -> None:
    """Ask for everything that a VMM asks for. A refusal of one thing ends nothing."""
    for ask in (
        client.device_info,
        lambda: close_fds([fd for fd in (client.region_info(MAPPED).fd,) if fd is not None]),
        lambda: client.region_info(PLAIN),
        lambda: close_fds([fd for sub in client.io_fds(PLAIN) for fd in descriptors(sub)]),
        lambda: client.irq_info(IrqIndex.MSIX),
        lambda: client.read(PLAIN, 0, 8),
        lambda: client.write(PLAIN, 0, b"abcd"),
        lambda: client.device_feature(FeatureFlags.PROBE, 1),
        lambda: client.dirty.report(0, 1 << 20, 4096),
        lambda: client.dma_map(0, 4096),
        client.poll,
        client.reset,
    ):
        with contextlib.suppress(VfioUserError):
            ask()


def recorded(dialect: Dialect = RATIFIED) -> bytes:
    """What a good server sends during :func:`talk`."""
    heard = bytearray()
    device = FakeDevice()
    bell = os.eventfd(0)
    device.subs[PLAIN] = [IoEventFd(0, 4, bell)]
    ours, theirs = socket.socketpair()

    def pass_on() -> None:
        while data := far.recv(1 << 16):
            heard.extend(data)
            theirs.sendall(data)

    def pass_back() -> None:
        while data := theirs.recv(1 << 16):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)

    with contextlib.closing(device), served(device, timeout=10.0, dialect=dialect) as (_, far):
        threads = [threading.Thread(target=work, daemon=True) for work in (pass_on, pass_back)]
        for thread in threads:
            thread.start()
        with Client(ours, timeout=10.0, dialect=dialect) as client:
            talk(client)
        for thread in threads:
            thread.join(5)
        theirs.close()
    os.close(bell)
    return bytes(heard)


def attack(data: bytes, dialect: Dialect = RATIFIED) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(VfioUserError), Client(ours, timeout=0.05, dialect=dialect) as client:
            talk(client)
        ours.close()


GOOD = recorded()
test_corpus, test_briefly, test_long = fuzz(attack, mutated([GOOD, GOOD, GOOD[:96], b""]), "client")
