"""A plugin that misbehaves as it is told to."""

from __future__ import annotations

import os
import signal

from bellwire import Bar, Option, OptionError, PciDevice


class Probe(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    """Misbehaves as it is told to."""

    mood = Option("good", help="raises, refuses or sleeps at its start; leaves at once; is stubborn at its end")
    pace = Option(3, help="a number")

    mmio = Bar(0, size=4096)
    plain = mmio.reg(0x00)
    hang = mmio.reg(0x04)
    leave = mmio.reg(0x08)
    edition = mmio.reg(0x0C, access="constant", reset=1)
    fall = mmio.reg(0x10)

    def setup(self) -> None:
        """When the worker starts."""
        if self.mood == "raises":
            raise PermissionError(1, "a tap needs CAP_NET_ADMIN")
        if self.mood == "refuses":
            raise OptionError(f"option mood={self.mood}: not today")
        if self.mood == "leaves":
            os._exit(9)
        while self.mood == "sleeps":
            signal.pause()

    def close(self) -> None:
        """When it ends."""
        while self.mood == "stubborn":
            signal.pause()

    @pace.set
    def set_pace(self, pace: int) -> None:
        """While it runs."""
        self.plain = pace

    @hang.write
    def hang_written(self, _: int) -> None:
        """Never comes back."""
        while True:
            pass

    @fall.write
    def fall_written(self, _: int) -> None:
        """Raises what no boundary catches."""
        raise KeyboardInterrupt

    @leave.write
    def leave_written(self, status: int) -> None:
        """Ends the worker with ``status``."""
        os._exit(status)
