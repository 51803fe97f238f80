"""The guest's serial port: a 16550A (National Semiconductor, PC16550D data sheet) at COM1's place."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum, IntFlag

from bellwire_vmm.errors import StateError

PORT, PORTS = 0x3F8, 8
SERIAL_LINE = 4
FIFO = 16


class Register(IntEnum):
    """By offset. With the divisor latch open, the first two are the divisor."""

    DATA = 0
    INTERRUPT_ENABLE = 1
    INTERRUPT_ID = 2  # written: FIFO control
    LINE_CONTROL = 3
    MODEM_CONTROL = 4
    LINE_STATUS = 5
    MODEM_STATUS = 6
    SCRATCH = 7


class Enable(IntFlag):
    """Bits of the interrupt enable register: which events interrupt."""

    RECEIVED = 1
    SENT = 2


_LATCH = 0x80  # of LINE_CONTROL
_FIFO_ON, _CLEAR_RECEIVED = 0x01, 0x02
_LOOP = 0x10  # of MODEM_CONTROL
_READY, _IDLE = 0x01, 0x60  # of LINE_STATUS: data ready; transmitter empty, as it always is
_CONNECTED = 0xB0  # of MODEM_STATUS: carrier, data set ready, clear to send
_STATE = struct.Struct("=8s2s??B")
_NONE, _SENT, _RECEIVED, _FIFOS = 0x01, 0x02, 0x04, 0xC0


class Uart:
    """A `bus.Target` of eight ports. ``send`` gets the guest's output, ``line`` the level of the interrupt.

    Every byte is sent at once, whatever baud rate the divisor sets.
    """

    def __init__(self, send: Callable[[bytes], None], line: Callable[[bool], None]) -> None:
        self._send = send
        self._set_line = line
        self._lock = threading.Condition()
        self._received: deque[int] = deque()
        self._registers = bytearray(PORTS)
        self._divisor = bytearray(b"\x01\0")
        self._fifo = False
        self._sent = False  # the interrupt for a sent byte is pending
        self._level = False
        self._closed = False

    def receive(self, data: bytes) -> bool:
        """Give the guest ``data``. Waits while the guest does not read. Returns False if the port is closed."""
        for byte in data:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or len(self._received) < FIFO)
                if self._closed:
                    return False
                if self._registers[Register.MODEM_CONTROL] & _LOOP:
                    continue
                self._received.append(byte)
                self._interrupt()
        return True

    def close(self) -> None:
        """Close the port: `receive` stops waiting, and returns False."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def read(self, offset: int, size: int) -> bytes:
        """Read a register. Registers are a byte wide; the other bytes of a wider read are ones."""
        with self._lock:
            value = self._read(offset)
            self._interrupt()
        return bytes([value]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Write a register. Only the first byte of a wider write counts."""
        with self._lock:
            self._write(offset, data[0])
            self._interrupt()

    def state(self) -> bytes:
        """The registers, what is received and not read yet, and the pending interrupt (`part.Part`)."""
        with self._lock:
            received = bytes(self._received)
            flags = self._fifo, self._sent
            return _STATE.pack(bytes(self._registers), bytes(self._divisor), *flags, len(received)) + received

    def set_state(self, state: bytes) -> None:
        """Put the port into a state that `state` returned, and its line to the level that belongs to it."""
        received = state[_STATE.size :]
        if len(state) < _STATE.size or state[_STATE.size - 1] != len(received) or len(received) > FIFO:
            raise StateError(f"the serial port's state has {len(state)} bytes, which do not fit each other")
        with self._lock:
            registers, divisor, self._fifo, self._sent, _ = _STATE.unpack_from(state)
            self._registers[:], self._divisor[:] = registers, divisor
            self._received = deque(received)
            self._interrupt()
            self._lock.notify_all()

    def _read(self, offset: int) -> int:
        match offset:
            case Register.DATA | Register.INTERRUPT_ENABLE if self._latched:
                return self._divisor[offset]
            case Register.DATA:
                if not self._received:
                    return 0
                self._lock.notify_all()
                return self._received.popleft()
            case Register.INTERRUPT_ID:
                reason = self._reason()
                if reason == _SENT:
                    self._sent = False
                return reason | (_FIFOS if self._fifo else 0)
            case Register.LINE_STATUS:
                return _IDLE | (_READY if self._received else 0)
            case Register.MODEM_STATUS:
                return self._modem_status()
            case _:
                return self._registers[offset]

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case Register.DATA | Register.INTERRUPT_ENABLE if self._latched:
                self._divisor[offset] = value
            case Register.DATA:
                if not self._registers[Register.MODEM_CONTROL] & _LOOP:
                    self._send(bytes([value]))
                elif len(self._received) < FIFO:
                    self._received.append(value)
                self._sent = True
            case Register.INTERRUPT_ENABLE:
                if value & ~self._registers[offset] & Enable.SENT:
                    self._sent = True
                self._registers[offset] = value & 0x0F
            case Register.INTERRUPT_ID:
                self._fifo = bool(value & _FIFO_ON)
                if value & _CLEAR_RECEIVED:
                    self._received.clear()
                    self._lock.notify_all()
            case Register.LINE_STATUS | Register.MODEM_STATUS:
                pass
            case _:
                self._registers[offset] = value

    @property
    def _latched(self) -> bool:
        return bool(self._registers[Register.LINE_CONTROL] & _LATCH)

    def _modem_status(self) -> int:
        control = self._registers[Register.MODEM_CONTROL]
        if not control & _LOOP:
            return _CONNECTED
        # In loop-back mode the outputs come in: DTR as DSR, RTS as CTS, OUT1 as ring, OUT2 as carrier.
        return (control & 1) << 5 | (control & 2) << 3 | (control & 4) << 4 | (control & 8) << 4

    def _reason(self) -> int:
        enabled = self._registers[Register.INTERRUPT_ENABLE]
        if enabled & Enable.RECEIVED and self._received:
            return _RECEIVED
        if enabled & Enable.SENT and self._sent:
            return _SENT
        return _NONE

    def _interrupt(self) -> None:
        level = self._reason() != _NONE
        if level != self._level:
            self._level = level
            self._set_line(level)
