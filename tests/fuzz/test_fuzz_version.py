"""The JSON of VERSION: a server reads it from each client, and a client from each server."""

from __future__ import annotations

import contextlib
import json
import struct

from fuzz.fuzzing import fuzz, mutated
from protocol.backend import QEMU_PROPOSAL
from vfio_user import Capabilities, Version, VfioUserError

FULL = Version(
    0,
    2,
    Capabilities.of(max_msg_fds=16, max_data_xfer_size=1 << 20, write_multiple=True, twin_socket=True, fd_index=0),
).pack()


def attack(data: bytes) -> None:
    with contextlib.suppress(VfioUserError):
        version = Version.unpack(memoryview(data))
        assert Version.unpack(memoryview(version.pack())) == version
        json.dumps(version.capabilities.to_json())


test_corpus, test_briefly, test_long = fuzz(
    attack, mutated([struct.pack("<HH", 0, 0) + QEMU_PROPOSAL, FULL, bytes(4)]), "version"
)
