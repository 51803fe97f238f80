"""A card with two functions: one has two BARs of 64 GiB and 2048 vectors, the other an expansion ROM."""

from __future__ import annotations

from bellwire import Bar, MsiX, PciDevice, Rom
from bellwire.testing import option_rom

SIZE = 64 << 30
VENDOR, ENGINE, CONSOLE = 0x1234, 0x51C0, 0x51C1


class Engine(PciDevice, vendor=VENDOR, device=ENGINE, class_code=0x120000):
    """Function 0. Registers lie at both ends of one BAR; the other is memory that the guest maps."""

    irq = MsiX(2048)
    memory = Bar(0, size=SIZE, bits=64, prefetchable=True)
    first = memory.reg(0)
    last = memory.reg(SIZE - 4, reset=0x0BAD_CAFE)
    frames = Bar(2, size=SIZE, bits=64, prefetchable=True)
    store = frames.area(0, SIZE)


class Console(PciDevice, vendor=VENDOR, device=CONSOLE, class_code=0x078000):
    """Function 1, with a ROM."""

    mmio = Bar(0, size=4096)
    scratch = mmio.reg(0)
    boot = Rom(option_rom(b"\xcb", vendor=VENDOR, device=CONSOLE, class_code=0x078000))


functions = [Engine, Console]
