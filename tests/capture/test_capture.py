"""A capture of messages is pcapng as the specification has it."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bellwire import Bar, PciDevice
from bellwire.capture.capture import EVENTS, MESSAGES, SNAP, Capture
from bellwire.capture.files import SMALLEST
from bellwire.capture.pcapng import RECEIVED, SENT
from capture.reading import packets


class Thing(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    """Has a name for everything."""

    mmio = Bar(0, size=4096)
    status = mmio.reg(0x10)
    bell = mmio.doorbell(0x20)

    @bell.ring
    def rang(self) -> None:
        """Nothing: it is there for its name."""


def captured(tmp_path: Path, limit: int = 1 << 20) -> tuple[Capture, Path]:
    path = tmp_path / "a.pcapng"
    clock = itertools.count(1_700_000_000_123_456_789)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    return Capture("thing", Thing.layout, [fd], limit, clock.__next__), path


def test_messages_have_their_way_their_descriptors_and_their_time(tmp_path: Path) -> None:
    capture, path = captured(tmp_path)
    capture.received((b"to the ", memoryview(b"server")), 3)
    capture.sent((b"to the client",), 0)
    capture.files.close()
    _, asked, answered = packets(path)
    assert (asked.interface, asked.dissector, asked.direction) == (MESSAGES, "vfio-user", RECEIVED)
    assert asked.data == b"\0\0\3\0to the server"
    assert asked.time == 1_700_000_000_123_456_790
    assert (answered.direction, answered.data) == (SENT, b"\1\0\0\0to the client")
    assert capture.messages == 2


def test_a_file_begins_with_the_names_of_the_device_and_its_registers(tmp_path: Path) -> None:
    capture, path = captured(tmp_path)
    capture.files.close()
    (names,) = packets(path)
    assert (names.interface, names.dissector) == (EVENTS, "bellwire")
    assert names.data == (b"\0\5thing\0\0\6\0\4\0\0\0\x10\0\0\0\0\0\0\0status\0\0\4\0\4\0\0\0\x20\0\0\0\0\0\0\0bell")


def test_of_a_long_message_the_beginning_and_the_length_are_kept(tmp_path: Path) -> None:
    capture, path = captured(tmp_path)
    capture.received((bytes(SNAP), b"more"), 0)
    capture.files.close()
    long = packets(path)[1]
    assert (len(long.data), long.length) == (4 + SNAP, 4 + SNAP + 4)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.binary(max_size=300), max_size=3), st.integers(0, 253))))
def test_whatever_is_captured_can_be_read(messages: list[tuple[bool, list[bytes], int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        capture, path = captured(Path(name))
        for sent, pieces, fds in messages:
            (capture.sent if sent else capture.received)(pieces, fds)
        capture.files.close()
        found = packets(path)[1:]
    assert [(each.data[0] == 1, each.data[4:], each.data[2]) for each in found] == [
        (sent, b"".join(pieces), fds) for sent, pieces, fds in messages
    ]


def test_a_capture_that_is_full_counts_what_it_has(tmp_path: Path) -> None:
    capture, path = captured(tmp_path, SMALLEST)
    for _ in range(20):
        capture.received((bytes(8000),), 0)
    capture.files.close()
    assert capture.messages == len(packets(path)) - 1 == 8
