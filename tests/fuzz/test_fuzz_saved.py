"""What makes a machine of bytes: the file of a saved one, and what a source sends of one that moves."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import zlib
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import strategies as st

from bellwire_vmm.errors import VmmError
from bellwire_vmm.machine.memory import PAGE, GuestMemory
from bellwire_vmm.moving.target import Target
from bellwire_vmm.moving.wire import ADDRESS, Kind
from bellwire_vmm.saved import file, sections
from bellwire_vmm.saved.machine import to_json
from fuzz.fuzzing import fuzz, mutated

MEMORY = 4 * PAGE
SHAPE = to_json({"memory": MEMORY, "cpus": 1, "tsc_khz": 0, "guest": "bell", "devices": {"1": {"id": "1234:be11"}}})
STATE = sections.pack({"cpu0.regs": bytes(144), "slot 1 data": b"data", "empty": b""})
PAGES = bytes(2 * PAGE)
SUMS = file._SUM.pack(zlib.crc32(PAGES))
RUNS = b"".join(file._RUN.pack(*run) for run in ((0, PAGE), (2 * PAGE, PAGE)))


def sealed(blocks: tuple[bytes, ...]) -> bytes:
    """A file with two pages and these blocks, whose checksums are right."""
    lengths = map(len, blocks)
    header = file._HEADER.pack(file.MAGIC, file.FORMAT, PAGE, MEMORY, *lengths, zlib.crc32(b"".join(blocks)))
    return (header + file._CHECK.pack(zlib.crc32(header))).ljust(PAGE, b"\0") + PAGES + b"".join(blocks)


def frame(kind: Kind, content: bytes) -> bytes:
    """A frame of the source's."""
    return kind.value + len(content).to_bytes(8, "little") + content


def attack_file(data: bytes) -> None:
    with tempfile.TemporaryFile() as made, contextlib.suppress(VmmError):
        made.write(data)
        made.flush()
        found = file.SavedFile(made.fileno())
        assert found.used <= MEMORY == found.memory
        memory = GuestMemory(MEMORY)
        try:
            found.load(memory)
        finally:
            memory.close()


def attack_target(data: bytes) -> None:
    source, ours = socket.socketpair()
    memory = GuestMemory(MEMORY)
    try:
        source.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            source.send(data)
        source.shutdown(socket.SHUT_WR)
        with contextlib.suppress(VmmError):
            target = Target(ours)
            sections.unpack(target._receive(cast("Any", SimpleNamespace(memory=memory))))
        assert os.fstat(memory.share()).st_size == MEMORY
    finally:
        memory.close()
        source.close()
        ours.close()


BLOCKS = st.tuples(mutated([RUNS]), mutated([SUMS]), mutated([SHAPE]), mutated([STATE]))
MOVE = frame(Kind.HELLO, SHAPE) + frame(Kind.PAGES, ADDRESS.pack(PAGE) + bytes(PAGE)) + frame(Kind.STATE, STATE)

test_file_corpus, test_file_briefly, test_file_long = fuzz(
    attack_file, BLOCKS.map(sealed) | mutated([sealed((RUNS, SUMS, SHAPE, STATE))])
)
test_move_corpus, test_move_briefly, test_move_long = fuzz(attack_target, mutated([MOVE]))
