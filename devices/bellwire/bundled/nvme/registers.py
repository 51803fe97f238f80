"""The controller's registers (§3.1) and doorbells, all in BAR0 (§2.1.10)."""

from __future__ import annotations

from bellwire import Bar, IntX, Msi, MsiX, PciDevice

QUEUES = 64
"""The limit of I/O queue pairs, without the admin pair."""
ENTRIES = 1024
"""The limit of entries in an I/O queue."""
ADMIN_ENTRIES = 4096
"""The limit of entries in an admin queue: AQA has 12 bits for it (§3.1.8)."""
PAGE = 4096
READY_TIMEOUT = 20  # of 500 ms: what CAP.TO promises

CAPABILITIES = (
    ENTRIES - 1  # MQES, counted from zero
    | 1 << 16  # CQR: queues must be contiguous
    | READY_TIMEOUT << 24
    | 1 << 37  # CSS: the NVM command set
)
VERSION_1_4 = 0x0001_0400

ENABLE = 1 << 0  # CC.EN
READY = 1 << 0  # CSTS.RDY
FATAL = 1 << 1  # CSTS.CFS
SHUTDOWN_BUSY = 1 << 2  # CSTS.SHST
SHUTDOWN_DONE = 2 << 2
SHUTDOWN_MASK = 3 << 2


class Registers(PciDevice, repeats=True):
    """The registers of the controller, without behaviour. The device derives from it.

    Of a doorbell only the last value counts, although tails and heads wrap around. A host keeps one entry of a queue
    free (§4.1.2). So before the controller has looked at a tail or head, the host can move it by less than the size of
    the queue: the last value tells all that has been added or taken, and it never comes back to the value that the
    controller knows. (What is lost is the notice of a wrong value that a right one follows at once.)
    """

    irq = MsiX(QUEUES + 1)
    msi = Msi(1)
    line = IntX()

    mmio = Bar(0, size=1 << 14, bits=64)
    cap = mmio.reg(0x00, size=8, access="constant", reset=CAPABILITIES)
    vs = mmio.reg(0x08, access="constant", reset=VERSION_1_4)
    intms = mmio.reg(0x0C, access="w1s")
    intmc = mmio.reg(0x10, access="w1c")
    cc = mmio.reg(0x14, writable=0x00FF_FFF1)
    csts = mmio.reg(0x1C, access="ro")
    nssr = mmio.reg(0x20, access="reserved")
    aqa = mmio.reg(0x24, writable=0x0FFF_0FFF)
    asq = mmio.reg(0x28, size=8, writable=~(PAGE - 1) & (1 << 64) - 1)
    acq = mmio.reg(0x30, size=8, writable=~(PAGE - 1) & (1 << 64) - 1)
    cmbloc = mmio.reg(0x38, access="reserved")  # 0: no controller memory buffer
    cmbsz = mmio.reg(0x3C, access="reserved")
    admin_bells = mmio.ioregion(0x1000, 8, posted=True, bell=4, latest=True)
    io_bells = mmio.ioregion(0x1008, 8 * QUEUES, posted=True, bell=4, latest=True)


class ControllerConfiguration:
    """The fields of CC (§3.1.5)."""

    __slots__ = ("arbitration", "command_set", "completion_size", "enable", "page_size", "shutdown", "submission_size")

    def __init__(self, value: int) -> None:
        self.enable = bool(value & ENABLE)
        self.command_set = value >> 4 & 7
        self.page_size = value >> 7 & 15
        self.arbitration = value >> 11 & 7
        self.shutdown = value >> 14 & 3
        self.submission_size = value >> 16 & 15
        self.completion_size = value >> 20 & 15
