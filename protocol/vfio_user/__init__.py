"""The vfio-user protocol: messages, framing with file descriptors, a server session and a client.

The package is independent of any device and any hypervisor. A server implements :class:`Backend`, and runs a
:class:`Session` for each connection. A client uses :class:`Client`, or :class:`vfio_user.aio.Client` with asyncio.

Source: vfio-user.rst in QEMU's documentation. docs/protocol.md lists what is supported.
"""

from vfio_user.backend import Backend, Late, Reader, Writer
from vfio_user.channel import Channel
from vfio_user.client import PROPOSAL, Client
from vfio_user.client_dirty import ClientDirtyPages
from vfio_user.client_migration import ClientMigration
from vfio_user.constants import (
    Command,
    DeviceFlags,
    DeviceState,
    DmaFlags,
    Feature,
    FeatureFlags,
    IoFdType,
    IrqFlags,
    IrqIndex,
    Mechanism,
    MessageFlags,
    MigrationFlags,
    RegionFlags,
    RegionIndex,
    SetIrqsFlags,
)
from vfio_user.dialects import DIALECTS, DRAFT_2021, RATIFIED, Dialect, dialect
from vfio_user.dma import DmaMap, DmaTable, DmaUnmap, Segment, SharedFile, SharedMap
from vfio_user.dma_answers import Memory
from vfio_user.errors import (
    Disconnected,
    DmaFault,
    FramingError,
    ProtocolError,
    RemoteError,
    Stalemate,
    TimedOut,
    VfioUserError,
)
from vfio_user.features import DeviceFeature
from vfio_user.io_fds import IoEventFd, IoRegionFd, ShadowIoEventFd, SubRegion
from vfio_user.ioregionfd import IoCommand, IoRegionClient, IoRegionServer
from vfio_user.irqs import IrqInfo, IrqTable, SetIrqs
from vfio_user.journal import Journal
from vfio_user.kept_files import KeptFiles
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.loan import Ready
from vfio_user.message import Message
from vfio_user.migration import MigrationData, MigrationRead
from vfio_user.movable import Movable
from vfio_user.regions import DeviceInfo, MmapArea, Region, RegionInfo
from vfio_user.session import SERVER, Session
from vfio_user.shadow import Cells, ShadowBell
from vfio_user.tap import Tap
from vfio_user.transfer import DmaAccess, RegionAccess, RegionWrite
from vfio_user.version import Capabilities, Version

__all__ = [
    "DIALECTS",
    "DRAFT_2021",
    "PROPOSAL",
    "RATIFIED",
    "SERVER",
    "Backend",
    "Capabilities",
    "Cells",
    "Channel",
    "Client",
    "ClientDirtyPages",
    "ClientMigration",
    "Command",
    "DeviceFeature",
    "DeviceFlags",
    "DeviceInfo",
    "DeviceState",
    "Dialect",
    "Disconnected",
    "DmaAccess",
    "DmaFault",
    "DmaFlags",
    "DmaMap",
    "DmaTable",
    "DmaUnmap",
    "Estate",
    "Feature",
    "FeatureFlags",
    "FramingError",
    "IoCommand",
    "IoEventFd",
    "IoFdType",
    "IoRegionClient",
    "IoRegionFd",
    "IoRegionServer",
    "IrqFlags",
    "IrqIndex",
    "IrqInfo",
    "IrqTable",
    "Journal",
    "Kept",
    "KeptFiles",
    "Late",
    "Ledger",
    "Mechanism",
    "Memory",
    "Message",
    "MessageFlags",
    "MigrationData",
    "MigrationFlags",
    "MigrationRead",
    "MmapArea",
    "Movable",
    "ProtocolError",
    "Reader",
    "Ready",
    "Region",
    "RegionAccess",
    "RegionFlags",
    "RegionIndex",
    "RegionInfo",
    "RegionWrite",
    "RemoteError",
    "Segment",
    "Session",
    "SetIrqs",
    "SetIrqsFlags",
    "ShadowBell",
    "ShadowIoEventFd",
    "SharedFile",
    "SharedMap",
    "Stalemate",
    "SubRegion",
    "Tap",
    "TimedOut",
    "Version",
    "VfioUserError",
    "Writer",
    "dialect",
]
