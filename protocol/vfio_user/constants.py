"""The protocol's numbers, by name."""

from __future__ import annotations

from enum import IntEnum, IntFlag, StrEnum

HEADER_SIZE = 16
DEFAULT_MAX_FDS = 1
DEFAULT_MAX_TRANSFER = 1 << 20
DEFAULT_MAX_DMA_MAPS = 65535
DEFAULT_PGSIZES = 4096
PCI_REGIONS = 9
PCI_IRQS = 5


class Command(IntEnum):
    """What a message asks for. The client sends all commands except DMA_READ and DMA_WRITE."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    """The server sends this and DMA_WRITE, to read and write guest memory by message."""
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MessageFlags(IntFlag):
    """The flags of a header. Bits 0 to 3 are the type: 0 is a command, 1 a reply."""

    REPLY = 0x1
    NO_REPLY = 0x10
    ERROR = 0x20


class RegionIndex(IntEnum):
    """The regions of a PCI device, as VFIO numbers them."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class IrqIndex(IntEnum):
    """The kinds of interrupt of a PCI device, as VFIO numbers them."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class DeviceFlags(IntFlag):
    """The flags of DEVICE_GET_INFO: the device can be reset; it is a PCI device."""

    RESET = 1
    PCI = 2


class RegionFlags(IntFlag):
    """The flags of DEVICE_GET_REGION_INFO: what may be done with a region, and whether capabilities follow."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlags(IntFlag):
    """The flags of DEVICE_GET_IRQ_INFO: how interrupts of a kind can be set up."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class SetIrqsFlags(IntFlag):
    """The flags of DEVICE_SET_IRQS. A request has exactly one kind of data and one action."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32

    @classmethod
    def data_kinds(cls) -> SetIrqsFlags:
        """The flags that say what data follows."""
        return cls.DATA_NONE | cls.DATA_BOOL | cls.DATA_EVENTFD

    @classmethod
    def actions(cls) -> SetIrqsFlags:
        """The flags that say what is done."""
        return cls.MASK | cls.UNMASK | cls.TRIGGER


class DmaFlags(IntFlag):
    """The flags of DMA_MAP: what the device may do with the memory, and (in newer texts) how it accesses it.

    Without BY_MMAP and BY_FILE_IO, memory that comes with a descriptor is mapped.
    """

    READ = 1
    WRITE = 2
    BY_MMAP = 4
    BY_FILE_IO = 8


class UnmapFlags(IntFlag):
    """The flags of DMA_UNMAP. The ratified text has none; these are of linux/vfio.h, and libvfio-user has both."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class RegionCapability(IntEnum):
    """The capabilities of a region, in the reply to DEVICE_GET_REGION_INFO."""

    SPARSE_MMAP = 1
    TYPE = 2


class IoFdType(IntEnum):
    """The mechanism of a sub-region in GET_REGION_IO_FDS. The text has no numbers; these are libvfio-user's."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    SHADOW = 2


class IoEventFdFlags(IntFlag):
    """The flags of an ioeventfd's entry: KVM_IOEVENTFD_FLAG_* of linux/kvm.h."""

    DATAMATCH = 1
    PIO = 2
    CCW = 8


class IoRegionFdFlags(IntFlag):
    """The flags of an ioregionfd's entry: KVM_IOREGION_* of the proposed uapi."""

    PIO = 1
    POSTED_WRITES = 2


class Mechanism(StrEnum):
    """How a guest's write to a register or a sub-region reaches its device."""

    IOEVENTFD = "ioeventfd"
    IOEVENTFD_DATAMATCH = "ioeventfd datamatch"
    IOREGIONFD = "ioregionfd"
    IOREGIONFD_KERNEL = "ioregionfd kernel"
    """KVM itself sends the command."""
    IOREGIONFD_RELAY = "ioregionfd relay"
    """The VMM sends the command, after the access has left the guest."""
    IOREGIONFD_HOST = "ioregionfd host"
    """A client without a VM sends the command."""
    SHADOW = "shadow"
    SHADOW_KERNEL = "shadow kernel"
    """KVM itself stores the value, and signals."""
    SHADOW_RELAY = "shadow relay"
    """The VMM stores the value and signals, after the access has left the guest."""
    SHADOW_HOST = "shadow host"
    """A client without a VM does."""
    REGION_WRITE = "region_write"
    REGION_WRITE_POSTED = "region_write posted"


IO_FDS = (Mechanism.IOEVENTFD, Mechanism.IOREGIONFD, Mechanism.SHADOW)
"""The mechanisms that the ``io_fds`` capability can name."""


class FeatureFlags(IntFlag):
    """The flags of DEVICE_FEATURE: what to do with the feature whose number is in bits 0 to 15."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


class Feature(IntEnum):
    """The features of DEVICE_FEATURE, as linux/vfio.h numbers them."""

    MIGRATION = 1
    """How the device can migrate: :class:`MigrationFlags`."""
    MIG_DEVICE_STATE = 2
    """The state that the device is in: :class:`DeviceState`."""
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    DMA_BUF = 11
    """Areas of a region as a dma-buf. It is Linux's, and not in the ratified text."""


class MigrationFlags(IntFlag):
    """How a device can migrate. STOP_COPY is set in each device that can migrate at all."""

    STOP_COPY = 1
    P2P = 2
    """The device knows the states RUNNING_P2P and, with PRE_COPY, PRE_COPY_P2P."""
    PRE_COPY = 4
    """The device gives data while it runs, too."""


class DeviceState(IntEnum):
    """The states of a device that migrates (linux/vfio.h, enum vfio_device_mig_state)."""

    ERROR = 0
    """The device's content is lost. DEVICE_RESET leads out of it."""
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    """The device stands still, and its state can be read."""
    RESUMING = 4
    """The device stands still, and a state can be written."""
    RUNNING_P2P = 5
    PRE_COPY = 6
    """The device runs, and the first part of its state can be read."""
    PRE_COPY_P2P = 7
