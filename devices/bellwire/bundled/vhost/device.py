"""vhost: a virtio device whose rings are a back end's. Registers, features, status, interrupts and reset are ours."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bellwire import Option, OptionError
from bellwire.bundled.vhost.types import ANY_CONFIG, TYPES, DeviceType, device_type, type_fault
from bellwire.model.capabilities import Identity
from bellwire.network import TapLink
from bellwire.network.checks import interface_fault, mac_fault, mtu_fault, parse_mac, socket_fault
from bellwire.network.features import OFFLOADS, Net, taken_over
from bellwire.network.interface import Settings
from bellwire.vhost.backend import Backend
from bellwire.vhost.device import VhostDevice
from bellwire.vhost.errors import BackendError
from bellwire.vhost.kernel import LEAST_CID, MOST_CID, VhostNet, VhostVsock
from bellwire.vhost.plane import Plane
from bellwire.vhost.user import VhostUser
from bellwire.virtio import Feature
from bellwire.virtio.device import FIRST_ID
from bellwire.virtio.transport import DEVICE, Transport

MOST_QUEUES = 64
LONGEST_TAG = 36
PASSED_ON = 0xFFFC_0000_00FF_FFFF | 1 << Feature.INDIRECT_DESC | 1 << Feature.EVENT_IDX
"""Features of the back end's that the driver may have: those of the device type (bits 0 to 23, and 50 to 63), and two
of rings. RING_PACKED has an option; VERSION_1 and ACCESS_PLATFORM are the transport's."""
UNIX, VHOST_NET, VHOST_VSOCK = "unix", "vhost-net", "vhost-vsock"
IMPLIED = {VHOST_NET: "net", VHOST_VSOCK: "vsock"}
"""The device type of the kernel's own back ends."""
USUAL = "fs"
EXPECTED = "unix:PATH (the socket of a vhost-user back end), vhost-net:TAP or vhost-vsock:CID"

NET_ABSENT = sum(1 << bit for bit in (2, 17, 18, 19, 20, 21, 22, 23))
"""What needs a control queue (§5.1.3): CTRL_GUEST_OFFLOADS, CTRL_VQ to GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR."""
NET_OURS = 1 << Net.MAC | 1 << Net.MTU | 1 << 63
"""What says that fields of the configuration count, which is the front end's: MAC, MTU, SPEED_DUPLEX."""
OF_TYPE = {"tag": "fs", "mac": "net", "mtu": "net"}
"""Options of one device type."""
LINK_UP = 1
BLK_NUM_QUEUES = 34  # offset of num_queues (§5.2.4)


def backend_fault(text: str) -> str | None:
    """What was expected, if ``text`` names no back end; else None."""
    kind, _, place = text.partition(":")
    if not text:
        return None
    if kind == UNIX and place:
        return socket_fault(Path(place))
    if kind == VHOST_NET and place:
        return interface_fault(place)
    if kind == VHOST_VSOCK:
        known = place.isascii() and place.isdigit() and LEAST_CID <= int(place) <= MOST_CID
        return None if known else f"vhost-vsock:CID, the guest's address: {LEAST_CID} to {MOST_CID}"
    return EXPECTED


def type_of(options: Mapping[str, Any]) -> DeviceType:
    """The device type that the options name, or that the back end implies."""
    implied = IMPLIED.get(options.get("backend", "").partition(":")[0], USUAL)
    kind = device_type(options.get("type") or implied)
    assert kind is not None  # the option's check has found one
    return kind


def tag_fault(text: str) -> str | None:
    """What was expected, if no file system can have this tag (§5.11.4); else None."""
    size = len(text.encode(errors="surrogateescape"))
    return None if 1 <= size <= LONGEST_TAG else f"1 to {LONGEST_TAG} bytes"


class Vhost(VhostDevice, kind=26, queues=MOST_QUEUES, class_code=0x018000, name="vhost"):
    """A virtio device of any type. A back end moves its data: this process only sets the rings up."""

    backend = Option("", check=backend_fault, help=EXPECTED)
    type = Option(
        "",
        check=type_fault,
        help="virtio's device type, by name (fs, blk, net, ...) or number; default: the kernel's back end's, or fs",
    )
    queues = Option(0, least=0, most=MOST_QUEUES, help="queues of the device; 0: as usual for its type")
    tag = Option("bellwire", check=tag_fault, help="fs: the name by which the guest mounts it")
    mac = Option("", check=mac_fault, help="net: address of the card; default: the driver makes one up")
    mtu = Option(0, check=mtu_fault, help="net: largest payload of a frame, 68 to 65535; 0: the driver chooses")

    guess = Option(
        False, help="go on after a crash of the back end even if it is uncertain which requests were in flight"
    )

    configuration = Transport.mmio.ioregion(DEVICE, ANY_CONFIG)

    kind: DeviceType
    plane: Plane
    own_config: bytes | None
    """The configuration, if it is not the back end's."""
    tap: TapLink | None = None
    """The tap whose packets the kernel moves."""

    def identified(self, options: Mapping[str, Any]) -> Identity:
        """The identity of the device type that the option names."""
        kind = self.kind = type_of(options)
        number = FIRST_ID + kind.id
        return replace(super().identified(options), device=number, subsystem=number, class_code=kind.class_code)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        handed = [queue for queue in self.virtqueues if queue.index not in self.kind.own]
        self.own_config = self.make_config()
        needs, size = self.needs(len(handed)), self.kind.config if self.own_config is None else 0
        self.plane = Plane(self, self.connect, handed, needs=needs, size=size, guess=self.guess, adopt=VhostUser)

    @property
    def queue_count(self) -> int:
        """The number of queues, from the option or as usual for the type."""
        return self.queues or self.kind.queues

    def check_options(self) -> None:
        """Refuse a device without a back end, options of other types, and numbers of queues that a type cannot have."""
        if not self.backend:
            raise OptionError(f"vhost needs backend=: {EXPECTED}")
        name, _, _ = self.backend.partition(":")
        if name in IMPLIED and self.kind is not device_type(IMPLIED[name]):
            raise OptionError(f"option type={self.type}: the back end {name} is of type {IMPLIED[name]}")
        if self.is_net and self.queue_count != 2:
            raise OptionError(f"option queues={self.queues}: a card has 2, one to receive and one to send")
        if self.kind is TYPES["vsock"] and self.queue_count != 3:
            raise OptionError(f"option queues={self.queues}: vsock has 3, to receive, to send, and for events")
        if self.kind is TYPES["fs"] and self.queue_count < 2:
            raise OptionError(f"option queues={self.queues}: fs has 2 or more, the first for requests of high priority")
        for option, name in OF_TYPE.items():
            if self.kind is not TYPES[name] and getattr(self, option) != getattr(Vhost, option).default:
                raise OptionError(f"option {option}={getattr(self, option)}: only type={name} has one")

    @property
    def is_net(self) -> bool:
        """Whether it is a network card: its configuration and its offers are the front end's."""
        return self.kind.id == 1

    def setup(self) -> None:
        """Open the tap, if the kernel serves one, and connect to the back end."""
        kind, _, place = self.backend.partition(":")
        if kind == VHOST_NET:
            self.tap = TapLink(place, settings=Settings(mtu=self.mtu))
        self.open_plane(self.tap)

    def connect(self, before: Backend | None) -> Backend:
        """A new connection to the back end. Called on another thread too: it touches only the option and the tap."""
        kind, _, place = self.backend.partition(":")
        if self.tap is not None:
            return VhostNet([end.fileno() for end in self.tap.ends])
        if kind == VHOST_VSOCK:
            return VhostVsock(int(place))
        assert before is None or isinstance(before, VhostUser)
        found = VhostUser.to(Path(place), before)
        size = 0 if self.own_config is not None or self.kind.blank else self.kind.config
        if size and not found.config(size):
            found.hang_up()
            found.forget()
            raise BackendError(
                f"the back end has no configuration, of which {self.type} has {size} bytes: it must offer "
                "VHOST_USER_PROTOCOL_F_CONFIG and VHOST_USER_PROTOCOL_F_BACKEND_REQ"
            )
        return found

    def needs(self, rings: int) -> int:
        """The number of queues in the back end's own count: for a card, some count pairs."""
        return rings // 2 if self.is_net else rings

    def make_config(self) -> bytes | None:
        """The configuration of a type for which the front end has it; None for others."""
        if self.kind.id == 26:
            tag = self.tag.encode(errors="surrogateescape")
            return struct.pack("<36sI", tag, len(self.virtqueues) - 1)
        if self.is_net:
            return struct.pack("<6sHHH", parse_mac(self.mac) or bytes(6), LINK_UP, 1, self.mtu)
        return None

    def close(self) -> None:
        """Let go of the back end, and close the tap."""
        super().close()
        if self.tap is not None:
            self.tap.close()

    # -- features and configuration

    def features(self) -> set[int]:
        """What the back end offers of the type, and what the front end adds."""
        offered = self.plane.features & PASSED_ON
        if self.is_net:
            if self.tap is not None:
                offered |= sum(1 << bit for bit in OFFLOADS)
            offered = offered & ~(NET_ABSENT | NET_OURS) | 1 << Net.STATUS
            offered |= (bool(self.mac) << Net.MAC) | (bool(self.mtu) << Net.MTU)
        return {bit for bit in range(64) if offered >> bit & 1}

    @configuration.read
    def read_configuration(self, offset: int, size: int) -> int:
        """A field of the configuration. What lies behind it reads as zero."""
        config = self.plane.config or b"" if self.own_config is None else self.own_config
        if self.kind.id == 2 and len(config) >= BLK_NUM_QUEUES + 2:
            count = len(self.virtqueues).to_bytes(2, "little")
            config = config[:BLK_NUM_QUEUES] + count + config[BLK_NUM_QUEUES + 2 :]
        return int.from_bytes(config[offset : offset + size], "little")

    @configuration.write
    def write_configuration(self, offset: int, size: int, value: int) -> None:
        """The driver writes a field: the back end decides what that means."""
        if self.plane.config is not None and offset + size <= len(self.plane.config):
            self.plane.write_config(offset, value.to_bytes(size, "little"))

    # -- the life of the driver

    def started(self) -> None:
        """The driver is ready: the tap may leave work to it as negotiated, and the back end gets the rings."""
        if self.tap is not None:
            self.tap.offload(taken_over(self.negotiated))
        super().started()
