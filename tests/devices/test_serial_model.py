"""The serial port against models of it: whatever a guest does, it is what the model says."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bellwire.bundled.serial import Serial
from bellwire.bundled.serial.registers import TRIGGERS, Cause, Enabled, Fcr, Lcr, Lsr, Mcr
from bellwire.testing import Guest

BYTE = st.integers(0, 0xFF)
ACCESSES = st.lists(st.tuples(st.booleans(), st.integers(0, 7), BYTE), max_size=60)
LOOPED = st.lists(
    st.one_of(
        st.tuples(st.just("send"), BYTE),
        st.tuples(st.just("send many"), st.integers(1, 20)),
        st.tuples(st.just("read"), st.just(0)),
        st.tuples(st.just("status"), st.just(0)),
        st.tuples(st.just("control"), BYTE),
        st.tuples(st.just("wait"), st.just(0)),
    ),
    max_size=60,
)


class Model:
    """The receiver in a loop: a list of bytes."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.overrun = False
        self.control = 0
        self.silent = False

    @property
    def depth(self) -> int:
        return 16 if self.control else 1

    def send(self, value: int) -> None:
        if len(self.bytes) < self.depth:
            self.bytes.append(value)
        else:
            self.overrun = True
            if not self.control:
                self.bytes = [value]
        self.silent = False

    def read(self) -> int:
        self.silent = False
        return self.bytes.pop(0) if self.bytes else 0

    def write_control(self, value: int) -> None:
        if bool(self.control) != bool(value & Fcr.ENABLE) or value & Fcr.CLEAR_RECEIVED:
            self.bytes.clear()
        self.control = value if value & Fcr.ENABLE else 0
        self.silent = False

    def wait(self) -> None:
        self.silent = self.silent or 0 < len(self.bytes) < TRIGGERS[self.control >> 6]

    def cause(self) -> Cause:
        if self.overrun:
            return Cause.LINE
        if len(self.bytes) >= TRIGGERS[self.control >> 6]:
            return Cause.RECEIVED
        return Cause.SILENCE if self.silent else Cause.NONE


@given(LOOPED)
def test_the_receiver_is_a_list_of_bytes(steps: list[tuple[str, int]]) -> None:
    model = Model()
    with Guest(Serial, backend="null") as guest:
        guest.write(Serial.mcr, Mcr.LOOP)
        guest.write(Serial.ier, Enabled.LINE | Enabled.RECEIVED)
        for step, value in steps:
            match step:
                case "send":
                    guest.write(Serial.data, value)
                    model.send(value)
                case "send many":
                    for number in range(value):
                        guest.write(Serial.data, number)
                        model.send(number)
                case "read":
                    assert guest.read(Serial.data) == model.read()
                case "status":
                    status = Lsr(guest.read(Serial.lsr))
                    assert (Lsr.READY in status, Lsr.OVERRUN in status) == (bool(model.bytes), model.overrun)
                    model.overrun = False
                case "control":
                    guest.write(Serial.iir, value)
                    model.write_control(value)
                case "wait":
                    guest.advance(1)
                    model.wait()
            cause = model.cause()
            assert guest.read(Serial.iir) == cause | (0xC0 if model.control else 0)
            assert guest.line is (cause is not Cause.NONE)


@given(ACCESSES)
def test_the_registers_that_only_store_do_so(accesses: list[tuple[bool, int, int]]) -> None:
    stored: dict[Any, int] = {Serial.lcr: 0, Serial.mcr: 0, Serial.scr: 0, Serial.ier: 0, "divisor": 12}
    with Guest(Serial, backend="null") as guest:
        for write, offset, value in accesses:
            if not write:
                guest.read(0, offset, 1)
                continue
            guest.write(0, value, offset=offset, size=1)
            latched = stored[Serial.lcr] & Lcr.DIVISOR
            match offset:
                case 0 if latched:
                    stored["divisor"] = stored["divisor"] & 0xFF00 | value
                case 1 if latched:
                    stored["divisor"] = stored["divisor"] & 0xFF | value << 8
                case 1:
                    stored[Serial.ier] = value & 0x0F
                case 3:
                    stored[Serial.lcr] = value
                case 4:
                    stored[Serial.mcr] = value & 0x1F
                case 7:
                    stored[Serial.scr] = value
        divisor, enabled = stored.pop("divisor"), stored.pop(Serial.ier)
        assert {register: guest.read(register) for register in stored} == stored
        guest.write(Serial.lcr, Lcr.DIVISOR)
        assert guest.read(0, 0, 2) == divisor
        guest.write(Serial.lcr, 0)
        assert guest.read(Serial.ier) == enabled


@given(ACCESSES)
def test_the_line_is_up_exactly_while_there_is_a_cause(accesses: list[tuple[bool, int, int]]) -> None:
    with Guest(Serial, backend="null") as guest:
        for write, offset, value in accesses:
            if write:
                guest.write(0, value, offset=offset, size=1)
            else:
                guest.read(0, offset, 1)
            asserted = guest.line
            assert asserted is (guest.read(Serial.iir) & 0x0F != Cause.NONE)
