"""The bits of the registers of a 16550A (National Semiconductor, PC16550D data sheet, §8)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

TRIGGERS = (1, 4, 8, 14)
"""Trigger levels in bytes: the two highest bits of the FIFO control register choose one."""


class Enabled(IntFlag):
    """Bits of the interrupt enable register."""

    RECEIVED = 0x01
    EMPTY = 0x02
    LINE = 0x04
    MODEM = 0x08


class Cause(IntEnum):
    """Values of the interrupt identification register, the most urgent first."""

    LINE = 0x06
    RECEIVED = 0x04
    SILENCE = 0x0C
    EMPTY = 0x02
    MODEM = 0x00
    NONE = 0x01


class Fcr(IntFlag):
    """Bits of the FIFO control register. The two highest bits choose the trigger level."""

    ENABLE = 0x01
    CLEAR_RECEIVED = 0x02
    CLEAR_UNSENT = 0x04


class Lcr(IntFlag):
    """Bits of the line control register, as far as the model uses them."""

    BREAK = 0x40
    DIVISOR = 0x80


class Mcr(IntFlag):
    """Bits of the modem control register."""

    DTR = 0x01
    RTS = 0x02
    OUT1 = 0x04
    OUT2 = 0x08
    LOOP = 0x10


class Lsr(IntFlag):
    """Bits of the line status register."""

    READY = 0x01
    OVERRUN = 0x02
    BREAK = 0x10
    EMPTY = 0x20
    IDLE = 0x40
    ERRORS = OVERRUN | BREAK


class Msr(IntFlag):
    """Bits of the modem status register: four levels, and a bit for the change of each."""

    RING_ENDED = 0x04
    CHANGES = 0x0F
    CTS = 0x10
    DSR = 0x20
    RING = 0x40
    DCD = 0x80
    LEVELS = 0xF0


LOOPED = {Mcr.DTR: Msr.DSR, Mcr.RTS: Msr.CTS, Mcr.OUT1: Msr.RING, Mcr.OUT2: Msr.DCD}
"""The input that each output is connected to in loopback mode."""
