"""The rest of the board: power, keys, and what is heard on the console."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.board.keyboard import Escape, Keyboard, raw
from bellwire_vmm.board.power import KeyboardController, PowerRegisters
from bellwire_vmm.board.uart import Uart
from bellwire_vmm.linux import PanicWatch
from bellwire_vmm.machine.pci import PciBus
from bellwire_vmm.vmm import Request

PATIENCE = 60.0
KEY = b"\x1d"
SLEEP, OFF = 1 << 13, 5 << 10


def test_sleep_type_five_with_the_enable_bit_is_power_off() -> None:
    asked: list[Request] = []
    power = PowerRegisters(asked.append)
    for value in (OFF, SLEEP, SLEEP | 3 << 10):
        power.write(4, value.to_bytes(2, "little"))
    assert asked == []
    power.write(4, (SLEEP | OFF).to_bytes(2, "little"))
    power.write(5, ((SLEEP | OFF) >> 8).to_bytes(1, "little"))
    assert asked == [Request.POWER_OFF] * 2


def test_no_event_happens_and_enable_bits_are_kept() -> None:
    power = PowerRegisters(lambda _: None)
    power.write(0, b"\xff\xff")
    power.write(2, b"\x20\x01")
    assert power.read(0, 4) == b"\0\0\x20\x01"
    assert power.read(4, 2) == b"\x01\0"  # ACPI is on
    assert power.read(5, 4) == bytes(4)


def test_the_keyboard_controller_resets_and_is_never_busy() -> None:
    asked: list[Request] = []
    controller = KeyboardController(asked.append)
    assert controller.read(0, 1) == b"\0"
    controller.write(0, b"\xd1")
    assert asked == []
    controller.write(0, b"\xfe")
    assert asked == [Request.RESET]


def test_the_reset_register_lies_among_the_ports_of_the_bus() -> None:
    bus, resets = PciBus(), list[None]()
    bus.on_reset = lambda: resets.append(None)
    bus.write(1, b"\x02")
    bus.write(0, b"\0\x06\0\x80")  # an address that looks like it
    assert bus.read(0, 4) == b"\0\x06\0\x80"
    assert resets == []
    bus.write(1, b"\x06")
    assert len(resets) == 1


def test_the_escape_is_three_keys_within_a_second() -> None:
    assert Escape().seen(KEY * 3, 0.0)
    escape = Escape()
    assert [escape.seen(KEY, now) for now in (0.0, 0.6, 1.2, 1.5)] == [False, False, False, True]


def test_another_key_between_makes_it_begin_anew() -> None:
    escape = Escape()
    assert not escape.seen(KEY * 2 + b"x" + KEY, 0.0)
    assert not escape.seen(KEY, 0.1)
    assert escape.seen(KEY, 0.2)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The person's end and the program's."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_a_terminal_is_raw_for_a_while_even_if_that_ends_badly(terminal: tuple[int, int]) -> None:
    _, theirs = terminal
    before = termios.tcgetattr(theirs)
    seen = []

    def fail() -> None:
        with raw(theirs):
            seen.append(termios.tcgetattr(theirs)[3])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not seen[0] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert termios.tcgetattr(theirs) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    with open(os.devnull) as null, raw(null.fileno()):
        pass


class Reader:
    """A guest that notes when something has come."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.uart = Uart(lambda _: None, lambda level: self.came.set() if level else None)
        self.uart.write(1, b"\x01")

    def read(self, count: int) -> bytes:
        assert self.came.wait(PATIENCE)
        text = bytearray()
        while len(text) < count:
            if self.uart.read(5, 1)[0] & 1:
                text += self.uart.read(0, 1)
        return bytes(text)


def test_what_is_typed_reaches_the_guest_control_keys_too(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    guest = Reader()
    with raw(theirs), closing(Keyboard(theirs, guest.uart, lambda: None)):
        os.write(ours, b"ls\r\x03\x1d")
        assert guest.read(5) == b"ls\r\x03\x1d"


def test_the_escape_leaves_once(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    left = threading.Event()
    with raw(theirs), closing(Keyboard(theirs, Reader().uart, left.set)):
        os.write(ours, KEY * 3)
        assert left.wait(PATIENCE)


def test_the_end_of_a_file_is_no_escape() -> None:
    ours, theirs = os.pipe()
    guest, left = Reader(), threading.Event()
    os.write(theirs, b"exit\n")
    os.close(theirs)
    with closing(Keyboard(ours, guest.uart, left.set)):
        assert guest.read(5) == b"exit\n"
    os.close(ours)
    assert not left.is_set()


def test_a_panic_is_heard_in_whatever_pieces_it_comes() -> None:
    said = b"[    1.5] fine\r\n[    2.0] Kernel panic - not syncing: no init\r\nKernel panic - not syncing: again\r\n"
    for size in (1, 7, len(said)):
        watch = PanicWatch()
        for at in range(0, len(said), size):
            watch.hear(said[at : at + size])
        assert watch.message == "Kernel panic - not syncing: no init"


@given(st.lists(st.binary(max_size=3000)))
def test_a_console_that_never_ends_its_lines_is_no_burden(pieces: list[bytes]) -> None:
    watch = PanicWatch()
    for piece in pieces:
        watch.hear(piece)
    assert len(watch._line) <= 1024
