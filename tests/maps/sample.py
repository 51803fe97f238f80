"""A device that declares something of every kind, for what is exported."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from bellwire import Bar, Block, IntX, Msi, MsiX, PciDevice, doorbell, reg


class ControlMode(IntEnum):
    """Values of Control.MODE."""

    OFF = 0
    FAST = 5
    """As fast as it can."""


class Control(IntFlag):
    """What is switched on."""

    ENABLE = 0x1
    MODE = 0xE
    """How fast it is."""
    LEVEL = 0xFF00
    BOTH = 0x8001


class Colour(IntEnum):
    """What a lamp shows."""

    RED = 1
    BLUE = 7


class Lane(Block):
    """A row of lanes."""

    base = reg(0x00, 8)
    """Where the lane's ring is."""
    state = reg(0x08, kind=Control, access="ro", reset=0x3)
    kick = doorbell(0x0C, value=True)


class Sample(PciDevice, vendor=0x1234, device=0xC0DE, class_code=0x0B4000, revision=3, subsystem=(0x5678, 0x9ABC)):
    """Has "every" kind\\of thing, 100 % <% not Perl %> `include: /* no comment */.

    This paragraph is for authors.
    """

    irq = MsiX(5)
    msi = Msi(2)
    line = IntX(2)

    mmio = Bar(0, size=1 << 14, bits=64, prefetchable=True, fill=0xFF)
    """Everything."""
    ident = mmio.reg(0x00, access="constant", reset=0x12345678)
    """What it is."""
    control = mmio.reg(0x04, Control, reset=0xA100, writable=0xFF0F)
    colour = mmio.reg(0x08, Colour, size=2, reset=7)
    half = mmio.reg(0x0A, size=2, writable=0x0FF0)
    large = mmio.reg(0x10, size=8, reset=0x1_0000_0001)
    odd = mmio.reg(0x18, size=6, access="ro", reset=0x42)
    events = mmio.reg(0x20, access="w1c")
    raised = mmio.reg(0x24, access="w1s")
    count = mmio.reg(0x28, access="rc")
    secret = mmio.reg(0x2C, access="wo")
    gap = mmio.reg(0x30, access="reserved")
    later = mmio.reg(0x34, access="unimplemented", reset=9)
    go = mmio.doorbell(0x40)
    """Starts it."""
    sent = mmio.doorbell(0x48, size=8, value=True)
    start = mmio.doorbell(0x50, match=1)
    stop = mmio.doorbell(0x50, match=2)
    shared = mmio.reg(0x50)
    rows = mmio.ioregion(0x100, 64, posted=True, bell=4)
    window = mmio.ioregion(0x200, 10)
    lanes = mmio.block(0x400, Lane, count=4, stride=0x20)
    memory = mmio.area(0x1000, 0x2000)

    ports = Bar(2, size=16, io=True)
    reset_port = ports.reg(0x3, size=1, access="wo")
    empty = Bar(3, size=4096)

    @go.ring
    @start.ring
    @stop.ring
    def rang(self) -> None:
        """Nothing happens."""

    @sent.ring
    def got(self, value: int) -> None:
        """Nothing happens."""

    @lanes.kick.ring
    def kicked(self, index: int, value: int) -> None:
        """Nothing happens."""


DEVICE = Sample
