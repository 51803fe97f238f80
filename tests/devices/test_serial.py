"""The serial port's registers, as a driver meets them (PC16550D data sheet, §8): no socket, no terminal, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from bellwire.bundled.serial import Serial
from bellwire.bundled.serial.registers import Cause, Enabled, Fcr, Lcr, Lsr, Mcr, Msr
from bellwire.stream import Stream
from bellwire.testing import Guest, conformance

TestSerial = conformance(Serial, backend="null")

FIFOS = 0xC0
TRIGGER_8 = 0x80
ALL = 0x0F
EMPTY = Lsr.EMPTY | Lsr.IDLE


class FarEnd(Stream):
    """A peer that takes ``room`` bytes, and says what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.there = True
        self.room = 1 << 20
        self.heard = b""
        self.to_say = b""
        self.held = False

    @property
    def connected(self) -> bool:
        return self.there

    def send(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        data = b"".join(pieces)[: self.room]
        self.heard += data
        self.room -= len(data)
        return len(data)

    def receive(self, size: int = 0) -> bytes:
        data, self.to_say = self.to_say[:size], self.to_say[size:]
        return data

    def hold(self, held: bool) -> None:
        self.held = held


class Port(Guest[Serial]):
    """A guest with a serial port, and what it says at the other end."""

    def __init__(self) -> None:
        super().__init__(Serial, backend="null")
        assert isinstance(self.device, Serial)
        self.serial = self.device
        self.serial.close()
        self.far = FarEnd()
        self.serial.plug(self.far)
        self.serial.core.reset()

    def say(self, data: bytes) -> None:
        self.far.to_say += data
        self.serial.moved()

    def cause(self) -> Cause:
        return Cause(self.read(Serial.iir) & 0x0F)

    def read_all(self) -> bytes:
        data = b""
        while self.read(Serial.lsr) & Lsr.READY:
            data += bytes([self.read(Serial.data)])
        return data


@pytest.fixture
def port() -> Iterator[Port]:
    with Port() as port:
        yield port


@pytest.fixture
def fifos(port: Port) -> Port:
    """With FIFOs on, trigger level 8, and all interrupts enabled but the one for room to send."""
    port.write(Serial.iir, Fcr.ENABLE | TRIGGER_8)
    port.write(Serial.ier, ALL & ~Enabled.EMPTY)
    return port


@pytest.fixture
def loop(fifos: Port) -> Port:
    """In loopback."""
    fifos.write(Serial.mcr, Mcr.LOOP)
    fifos.read(Serial.msr)
    return fifos


# -- bytes


def test_what_is_written_is_sent(port: Port) -> None:
    for byte in b"hello":
        port.write(Serial.data, byte)
    assert port.far.heard == b"hello"


def test_what_comes_is_read(port: Port) -> None:
    port.say(b"a")
    assert port.read(Serial.lsr) == EMPTY | Lsr.READY
    assert port.read(Serial.data) == ord("a")
    assert port.read(Serial.lsr) == EMPTY


def test_nothing_reads_as_zero(port: Port) -> None:
    assert port.read(Serial.data) == 0


def test_a_peer_that_does_not_take_more_leaves_the_transmitter_full(port: Port) -> None:
    port.far.room = 0
    port.write(Serial.data, ord("x"))
    assert port.read(Serial.lsr) == 0
    port.far.room = 1
    port.serial.moved()
    assert port.far.heard == b"x"
    assert port.read(Serial.lsr) == EMPTY


def test_a_fifo_takes_16_bytes_for_a_peer_that_takes_none(fifos: Port) -> None:
    fifos.far.room = 0
    for byte in range(20):
        fifos.write(Serial.data, byte)
    fifos.far.room = 100
    fifos.serial.moved()
    assert fifos.far.heard == bytes(range(16))


def test_a_guest_that_does_not_read_holds_the_peer_back(fifos: Port) -> None:
    fifos.say(bytes(20))
    assert fifos.far.held
    assert len(fifos.far.to_say) == 4
    for _ in range(9):
        assert fifos.far.held
        fifos.read(Serial.data)
    assert not fifos.far.held


def test_without_fifos_one_byte_is_taken_at_a_time(port: Port) -> None:
    port.say(b"ab")
    port.serial.moved()
    assert port.far.to_say == b"b"
    assert port.far.held


def test_a_driver_that_drops_rts_holds_the_peer_back(port: Port) -> None:
    port.write(Serial.mcr, Mcr.DTR)
    port.say(b"a")
    assert (port.far.held, port.far.to_say) == (True, b"a")
    port.write(Serial.mcr, Mcr.DTR | Mcr.RTS)
    assert not port.far.held


# -- interrupts


def test_no_interrupt_comes_that_was_not_asked_for(port: Port) -> None:
    port.say(b"a")
    assert port.cause() is Cause.NONE
    assert not port.line


def test_a_byte_interrupts_until_it_is_read(port: Port) -> None:
    port.write(Serial.ier, Enabled.RECEIVED)
    port.say(b"a")
    assert port.line
    assert port.cause() is Cause.RECEIVED
    port.read(Serial.data)
    assert not port.line


@pytest.mark.parametrize(("bits", "level"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_the_fifo_interrupts_at_its_trigger_level(port: Port, bits: int, level: int) -> None:
    port.write(Serial.iir, Fcr.ENABLE | bits)
    port.write(Serial.ier, Enabled.RECEIVED)
    port.say(bytes(level - 1))
    assert not port.line
    port.say(b"\0")
    assert port.read(Serial.iir) == FIFOS | Cause.RECEIVED
    port.read(Serial.data)
    assert not port.line


def test_fewer_bytes_interrupt_after_four_characters_of_silence(fifos: Port) -> None:
    fifos.say(b"abc")
    fifos.advance(0.004)
    assert not fifos.line
    fifos.advance(0.0002)  # at 9600 baud, a character takes 1.04 ms
    assert fifos.line
    assert fifos.cause() is Cause.SILENCE
    assert fifos.read(Serial.data) == ord("a")
    assert not fifos.line
    fifos.advance(0.0042)
    assert fifos.cause() is Cause.SILENCE


def test_a_raised_trigger_level_does_not_leave_a_byte_lying(port: Port) -> None:
    port.write(Serial.iir, Fcr.ENABLE)
    port.write(Serial.ier, Enabled.RECEIVED)
    port.say(b"a")
    port.write(Serial.iir, Fcr.ENABLE | TRIGGER_8)
    assert not port.line
    port.advance(0.0042)
    assert port.cause() is Cause.SILENCE


def test_a_byte_ends_the_silence(fifos: Port) -> None:
    fifos.say(b"a")
    fifos.advance(0.004)
    fifos.say(b"b")
    fifos.advance(0.004)
    assert not fifos.line


def test_no_silence_is_long(fifos: Port) -> None:
    fifos.write(Serial.lcr, Lcr.DIVISOR)
    fifos.write(Serial.ier, 0xFF)
    fifos.write(Serial.lcr, 0)
    fifos.say(b"a")
    fifos.advance(0.05)
    assert fifos.line


def test_an_empty_transmitter_interrupts_until_that_is_known(port: Port) -> None:
    port.write(Serial.ier, Enabled.EMPTY)
    assert port.line
    assert port.cause() is Cause.EMPTY
    assert not port.line
    assert port.cause() is Cause.NONE
    port.write(Serial.data, 0)
    assert port.line


def test_enabling_that_interrupt_again_raises_it_again(port: Port) -> None:
    for _ in range(2):
        port.write(Serial.ier, Enabled.EMPTY)
        assert port.cause() is Cause.EMPTY
        port.write(Serial.ier, 0)


def test_a_full_transmitter_does_not_interrupt(port: Port) -> None:
    port.far.room = 0
    port.write(Serial.data, 0)
    port.write(Serial.ier, Enabled.EMPTY)
    assert not port.line
    port.far.room = 1
    port.serial.moved()
    assert port.cause() is Cause.EMPTY


def test_the_most_urgent_cause_comes_first(loop: Port) -> None:
    loop.write(Serial.iir, Fcr.ENABLE)
    loop.write(Serial.mcr, Mcr.LOOP | Mcr.RTS)
    loop.write(Serial.ier, ALL)
    for byte in range(17):
        loop.write(Serial.data, byte)
    assert loop.cause() is Cause.LINE
    assert loop.read(Serial.lsr) & Lsr.OVERRUN
    assert loop.cause() is Cause.RECEIVED
    assert loop.read_all() == bytes(range(16))
    assert loop.cause() is Cause.EMPTY
    assert loop.cause() is Cause.MODEM
    loop.read(Serial.msr)
    assert loop.cause() is Cause.NONE


# -- FIFOs


def test_the_fifos_show_in_the_identification(port: Port) -> None:
    assert port.read(Serial.iir) == Cause.NONE
    port.write(Serial.iir, Fcr.ENABLE)
    assert port.read(Serial.iir) == FIFOS | Cause.NONE


def test_clearing_the_receive_fifo_drops_what_was_not_read(fifos: Port) -> None:
    fifos.say(b"gone")
    fifos.write(Serial.iir, Fcr.ENABLE | Fcr.CLEAR_RECEIVED)
    assert fifos.read(Serial.lsr) == EMPTY
    fifos.advance(1)
    assert not fifos.line


def test_clearing_the_send_fifo_drops_what_was_not_sent(fifos: Port) -> None:
    fifos.far.room = 0
    fifos.write(Serial.data, 0)
    fifos.write(Serial.iir, Fcr.ENABLE | Fcr.CLEAR_UNSENT)
    assert fifos.read(Serial.lsr) == EMPTY
    fifos.far.room = 1
    fifos.serial.moved()
    assert fifos.far.heard == b""


def test_turning_the_fifos_off_clears_them(fifos: Port) -> None:
    fifos.say(b"gone")
    fifos.write(Serial.iir, 0)
    assert fifos.read(Serial.lsr) == EMPTY
    assert fifos.read(Serial.iir) == Cause.NONE


# -- the line, the modem, the loop


def test_the_divisor_hides_behind_its_latch(port: Port) -> None:
    port.write(Serial.ier, 0x05)
    port.write(Serial.lcr, Lcr.DIVISOR | 0x03)
    assert port.read(0, 0, 2) == 12
    port.write(0, 0x0180, offset=0, size=2)
    assert port.read(0, 0, 2) == 0x0180
    port.write(Serial.lcr, 0x03)
    assert port.read(Serial.ier) == 0x05
    assert port.far.heard == b""


def test_the_scratch_register_keeps_what_is_written(port: Port) -> None:
    port.write(Serial.scr, 0xA5)
    assert port.read(Serial.scr) == 0xA5


def test_the_modems_lines_are_up_while_somebody_is_there(port: Port) -> None:
    assert port.read(Serial.msr) == Msr.CTS | Msr.DSR | Msr.DCD
    port.write(Serial.ier, Enabled.MODEM)
    port.far.there = False
    port.serial.moved()
    assert port.line
    assert port.cause() is Cause.MODEM
    assert port.read(Serial.msr) == 0x0B
    assert port.read(Serial.msr) == 0
    assert not port.line


@pytest.mark.parametrize(
    ("control", "level", "change"),
    [(Mcr.DTR, Msr.DSR, 0x02), (Mcr.RTS, Msr.CTS, 0x01), (Mcr.OUT1, Msr.RING, 0), (Mcr.OUT2, Msr.DCD, 0x08)],
)
def test_in_a_loop_the_lines_are_our_own(loop: Port, control: Mcr, level: Msr, change: int) -> None:
    loop.write(Serial.mcr, Mcr.LOOP | control)
    assert loop.read(Serial.msr) == level | change
    loop.write(Serial.mcr, Mcr.LOOP)
    assert loop.read(Serial.msr) == (change or Msr.RING_ENDED)


def test_in_a_loop_bytes_come_back_and_nobody_else_hears_them(loop: Port) -> None:
    loop.far.to_say = b"from outside"
    for byte in b"hello":
        loop.write(Serial.data, byte)
    loop.serial.moved()
    assert loop.read_all() == b"hello"
    assert loop.far.heard == b""
    assert loop.far.held


def test_in_a_loop_a_fifo_can_overrun(loop: Port) -> None:
    for byte in range(17):
        loop.write(Serial.data, byte)
    assert loop.read(Serial.lsr) == EMPTY | Lsr.READY | Lsr.OVERRUN
    assert loop.read(Serial.lsr) == EMPTY | Lsr.READY
    assert loop.read_all() == bytes(range(16))


def test_in_a_loop_without_a_fifo_a_byte_takes_the_place_of_the_last(loop: Port) -> None:
    loop.write(Serial.iir, 0)
    for byte in b"ab":
        loop.write(Serial.data, byte)
    assert loop.read(Serial.lsr) == EMPTY | Lsr.READY | Lsr.OVERRUN
    assert loop.read_all() == b"b"


def test_in_a_loop_a_break_comes_back(loop: Port) -> None:
    loop.write(Serial.lcr, Lcr.BREAK)
    assert loop.cause() is Cause.LINE
    assert loop.read(Serial.lsr) == EMPTY | Lsr.READY | Lsr.BREAK
    assert loop.read(Serial.data) == 0


def test_linux_finds_it_by_its_loop(port: Port) -> None:
    port.write(Serial.mcr, Mcr.LOOP | Mcr.OUT2 | Mcr.RTS)  # autoconfig() in 8250_port.c
    assert port.read(Serial.msr) & Msr.LEVELS == Msr.DCD | Msr.CTS


# -- life


def test_a_snapshot_has_what_is_under_way(fifos: Port) -> None:
    fifos.say(b"unread")
    fifos.far.room = 0
    fifos.write(Serial.data, ord("x"))
    snapshot = fifos.serial.core.snapshot()
    with Port() as after:
        after.serial.core.restore(snapshot)
        assert not after.line
        after.advance(0.01)
        assert after.cause() is Cause.SILENCE
        assert after.read_all() == b"unread"
        after.serial.moved()
        assert after.far.heard == b"x"


def test_where_a_snapshot_comes_back_nobody_may_be_there(fifos: Port) -> None:
    snapshot = fifos.serial.core.snapshot()
    with Port() as after:
        after.far.there = False
        after.serial.core.restore(snapshot)
        assert after.cause() is Cause.MODEM


def test_a_reset_forgets_what_is_under_way(fifos: Port) -> None:
    fifos.say(b"gone")
    fifos.advance(0.01)
    fifos.serial.core.reset()
    assert not fifos.line
    assert fifos.read(Serial.lsr) == EMPTY
    assert fifos.read(Serial.iir) == Cause.NONE
