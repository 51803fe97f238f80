"""The serial port, driven as a driver does it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.board.uart import FIFO, Uart

DATA, ENABLE, IDENTITY, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH = range(8)
NONE, SENT, RECEIVED = 0x01, 0x02, 0x04
PATIENCE = 60.0


@dataclass
class Wire:
    """A port and what comes out of it."""

    said: bytearray = field(default_factory=bytearray)
    levels: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uart = Uart(self.said.extend, self.levels.append)

    def read(self, register: int) -> int:
        return self.uart.read(register, 1)[0]

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, bytes([value]))


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.uart.close()


def test_what_the_guest_writes_is_said_at_once(wire: Wire) -> None:
    for byte in b"hello":
        assert wire.read(LINE_STATUS) == 0x60
        wire.write(DATA, byte)
    assert wire.said == b"hello"
    assert wire.levels == []


def test_the_divisor_hides_behind_its_latch(wire: Wire) -> None:
    wire.write(LINE_CONTROL, 0x83)
    wire.write(DATA, 0x0C)
    wire.write(ENABLE, 0x01)
    assert (wire.read(DATA), wire.read(ENABLE)) == (0x0C, 0x01)
    wire.write(LINE_CONTROL, 0x03)
    assert (wire.read(DATA), wire.read(ENABLE)) == (0, 0)
    assert wire.said == b""


def test_received_bytes_interrupt_until_they_are_read(wire: Wire) -> None:
    wire.write(ENABLE, 1)
    assert wire.uart.receive(b"ab")
    assert wire.levels == [True]
    assert wire.read(IDENTITY) == RECEIVED
    assert wire.read(LINE_STATUS) & 1
    assert bytes([wire.read(DATA), wire.read(DATA)]) == b"ab"
    assert wire.levels == [True, False]
    assert (wire.read(IDENTITY), wire.read(LINE_STATUS), wire.read(DATA)) == (NONE, 0x60, 0)


def test_the_sent_interrupt_comes_when_it_is_enabled_and_after_each_byte(wire: Wire) -> None:
    wire.write(ENABLE, 2)
    assert wire.levels == [True]
    assert wire.read(IDENTITY) == SENT  # reading it acknowledges
    assert wire.read(IDENTITY) == NONE
    wire.write(DATA, 0x41)
    assert wire.read(IDENTITY) == SENT
    wire.write(ENABLE, 0)
    wire.write(ENABLE, 2)
    assert wire.read(IDENTITY) == SENT
    assert wire.levels == [True, False, True, False, True, False]


def test_what_was_received_comes_first(wire: Wire) -> None:
    wire.write(ENABLE, 3)
    wire.uart.receive(b"a")
    assert wire.read(IDENTITY) == RECEIVED
    wire.read(DATA)
    assert wire.read(IDENTITY) == SENT


def test_it_is_a_16550a_once_its_fifos_are_on(wire: Wire) -> None:
    assert wire.read(IDENTITY) == NONE
    wire.write(IDENTITY, 0x01)
    assert wire.read(IDENTITY) == 0xC0 | NONE


def test_the_fifo_can_be_cleared(wire: Wire) -> None:
    wire.uart.receive(b"abc")
    wire.write(IDENTITY, 0x03)
    assert wire.read(LINE_STATUS) == 0x60


def test_loop_back_brings_everything_back_and_says_nothing(wire: Wire) -> None:
    wire.write(MODEM_CONTROL, 0x1A)
    assert wire.read(MODEM_STATUS) & 0xF0 == 0x90  # what Linux tries, to see whether there is a port
    wire.write(DATA, 0x55)
    assert wire.read(DATA) == 0x55
    assert wire.said == b""
    assert wire.uart.receive(b"from outside")
    assert wire.read(LINE_STATUS) == 0x60
    wire.write(MODEM_CONTROL, 0)
    assert wire.read(MODEM_STATUS) == 0xB0


def test_status_registers_cannot_be_written_and_scratch_can(wire: Wire) -> None:
    for register in (LINE_STATUS, MODEM_STATUS):
        before = wire.read(register)
        wire.write(register, 0)
        assert wire.read(register) == before
    wire.write(SCRATCH, 0xA5)
    assert wire.read(SCRATCH) == 0xA5


def test_wider_accesses_reach_one_register(wire: Wire) -> None:
    wire.uart.write(SCRATCH, b"\xa5\x00")
    assert wire.uart.read(SCRATCH, 2) == b"\xa5\xff"


def test_whoever_types_waits_for_a_guest_that_does_not_read(wire: Wire) -> None:
    text = bytes(range(1, 3 * FIFO + 1))
    typing = threading.Thread(target=wire.uart.receive, args=(text,))
    typing.start()
    read = bytearray()
    while len(read) < len(text):
        if wire.read(LINE_STATUS) & 1:
            read.append(wire.read(DATA))
    typing.join(PATIENCE)
    assert read == text


def test_closing_lets_whoever_types_go(wire: Wire) -> None:
    results: list[bool] = []
    typing = threading.Thread(target=lambda: results.append(wire.uart.receive(bytes(FIFO + 1))))
    typing.start()
    wire.uart.close()
    typing.join(PATIENCE)
    assert results == [False]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.binary(min_size=1, max_size=4))))
def test_any_accesses_are_answered_in_full(accesses: list[tuple[bool, int, bytes]]) -> None:
    wire = Wire()
    for is_write, register, data in accesses:
        if is_write:
            wire.uart.write(register, data)
        else:
            assert len(wire.uart.read(register, len(data))) == len(data)
    assert all(one != other for one, other in pairwise(wire.levels))
