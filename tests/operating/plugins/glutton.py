"""A plugin that takes as much as it gets."""

from __future__ import annotations

import os
import signal
import time

from bellwire import Bar, PciDevice

BLOCK = 4 << 20


class Glutton(PciDevice, vendor=0x1234, device=0x0002, class_code=0x088000):
    """Takes as much as it gets."""

    mmio = Bar(0, size=4096)
    eat = mmio.reg(0x00)
    multiply = mmio.reg(0x04)
    spin = mmio.reg(0x08)
    children = mmio.reg(0x0C)
    used = mmio.reg(0x10)

    @eat.write
    def eat_written(self, mebibytes: int) -> None:
        """Uses so much memory at a time."""
        _ = [b"\1" * BLOCK for _ in range((mebibytes << 20) // BLOCK)]

    @multiply.write
    def multiply_written(self, most: int) -> None:
        """Forks until that fails, or ``most`` times; counts its children."""
        for number in range(most):
            self.children = number
            try:
                if os.fork() == 0:
                    signal.pause()
            except BlockingIOError:
                return

    @spin.write
    def spin_written(self, milliseconds: int) -> None:
        """Works for so long; counts the milliseconds of processor time that it has got."""
        end, before = time.monotonic() + milliseconds / 1000, time.process_time()
        while time.monotonic() < end:
            pass
        self.used = int((time.process_time() - before) * 1000)
