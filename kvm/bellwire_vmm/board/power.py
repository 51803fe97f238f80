"""Power-off and reset: the fixed power management registers of ACPI, and the reset port of the keyboard controller."""

from __future__ import annotations

from collections.abc import Callable

from bellwire_vmm.errors import StateError
from bellwire_vmm.vmm import Request

EVENTS, EVENTS_SIZE = 0x600, 4
CONTROL, CONTROL_SIZE = 0x604, 2
SLEEP_OFF = 5
"""The sleep type that `_S5` names."""

RESET, RESET_VALUE = 0xCF9, 0x06
"""The reset control register of Intel's chipsets: bit 2 going to 1 resets."""

KEYBOARD = 0x64
_PULSE_RESET = 0xFE
_ENABLE, _CONTROL = EVENTS_SIZE // 2, CONTROL - EVENTS
_SCI_ENABLED = 1
_TYPE_SHIFT, _TYPES, _SLEEP = 10, 7, 1 << 13

Ask = Callable[[Request], None]


class PowerRegisters:
    """PM1 event and control blocks (ACPI 6.4 §4.8.3); a `bus.Target`. No event ever happens here."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._enabled = bytearray(EVENTS_SIZE // 2)

    def read(self, offset: int, size: int) -> bytes:
        """Read the registers: no event, the enable bits as written, and a control register that says ACPI is on."""
        registers = bytes(_ENABLE) + self._enabled + bytes([_SCI_ENABLED, 0])
        return registers[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Keep the enable bits, since guests check them. Sleep type 5 with the sleep enable bit powers off."""
        for at, byte in enumerate(data, offset):
            if _ENABLE <= at < EVENTS_SIZE:
                self._enabled[at - _ENABLE] = byte
        value = int.from_bytes(data, "little") << 8 * max(0, offset - _CONTROL)
        if offset >= _CONTROL and value & _SLEEP and value >> _TYPE_SHIFT & _TYPES == SLEEP_OFF:
            self._ask(Request.POWER_OFF)

    def state(self) -> bytes:
        """The enable bits (`part.Part`)."""
        return bytes(self._enabled)

    def set_state(self, state: bytes) -> None:
        """Set the enable bits. Raises StateError for another number of bytes."""
        if len(state) != len(self._enabled):
            raise StateError(f"power management registers of {len(state)} bytes, expected {len(self._enabled)}")
        self._enabled[:] = state


class KeyboardController:
    """Port 0x64 of a keyboard controller without a keyboard: it only knows the command that resets the machine."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def read(self, offset: int, size: int) -> bytes:
        """The status: ready for a command, no data."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Reset the machine on command 0xFE; ignore other commands."""
        if data[0] == _PULSE_RESET:
            self._ask(Request.RESET)
