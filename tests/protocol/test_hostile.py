"""Whatever a client sends, the server lives, nothing leaks, and the next client is served."""

from __future__ import annotations

import os
import socket
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.attack import Attack, arm, carry_out, descriptors
from protocol.backend import PLAIN, FakeDevice, fd_count, served
from protocol.guest import maps
from vfio_user import Client, IoEventFd, VfioUserError

PATIENCE = 0.01  # seconds that the server waits for a client that neither answers nor reads


def survive(attack: Attack) -> None:
    """Carry out an attack on a live server; then count descriptors and mappings, and be a good client."""
    with closing(FakeDevice()) as device, descriptors() as pool:
        bell = os.eventfd(0)
        device.subs[PLAIN] = [IoEventFd(0, 4, bell)]
        before = fd_count()
        with served(device, timeout=PATIENCE) as (server, sock):
            arm(device, lambda: server)
            carry_out(attack, sock, pool)
            sock.shutdown(socket.SHUT_RDWR)  # a close would not do: the server may hold this end of it too
            assert isinstance(server.join(), VfioUserError)
        assert fd_count() == before
        assert device.watched == {}
        assert "memfd:hostile" not in maps()
        assert device.failures == []
        device.on_write = device.store
        with served(device) as (_, sock), Client(sock) as client:
            client.write(PLAIN, 8, b"served")
            assert client.read(PLAIN, 8, 6) == b"served"
            (sub,) = client.io_fds(PLAIN)
            os.close(sub.fd)
        assert fd_count() == before
        os.close(bell)


hostile = given(seed=st.integers(0, (1 << 64) - 1), length=st.integers(1, 40))


@hostile
@settings(max_examples=150)
def test_a_server_survives_hostile_clients(seed: int, length: int) -> None:
    survive(Attack(seed, length))
