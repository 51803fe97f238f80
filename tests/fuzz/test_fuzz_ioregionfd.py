"""Records of ioregionfd: commands that a device receives, and responses that KVM or a relay receives."""

from __future__ import annotations

import contextlib
import socket

from fuzz.fuzzing import fuzz, mutated
from vfio_user import VfioUserError
from vfio_user.ioregionfd import (
    IoCommand,
    IoRegionClient,
    IoRegionServer,
    decode_command,
    decode_response,
    encode_command,
    encode_response,
)

SEEDS = [
    encode_command(IoCommand(True, 4, False, 7, 0x10, 0x1234)),
    encode_command(IoCommand(False, 8, True, 7, 0x10, 0)),
    encode_response(0x1234),
    b"",
]


def attack(data: bytes) -> None:
    with contextlib.suppress(VfioUserError):
        decode_command(data)
    with contextlib.suppress(VfioUserError):
        decode_response(data)
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with contextlib.closing(ours), contextlib.closing(IoRegionServer(theirs)) as server:
            send(ours, data)
            with contextlib.suppress(VfioUserError):
                while server.receive() is not None:
                    pass
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs, contextlib.closing(IoRegionClient(theirs.fileno(), timeout=0.001)) as client:
            send(ours, data)
            with contextlib.suppress(VfioUserError):
                client.read(7, 0, 4)


def send(sock: socket.socket, data: bytes) -> None:
    if data:
        sock.send(data)
    sock.shutdown(socket.SHUT_WR)


test_corpus, test_briefly, test_long = fuzz(attack, mutated(SEEDS, 4096), "ioregionfd")
