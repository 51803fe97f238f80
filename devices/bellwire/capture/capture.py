"""A capture: the vfio-user messages of a device, and its events, as packets of a pcapng file."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from bellwire.capture.events import Events
from bellwire.capture.files import Files
from bellwire.capture.pcapng import RECEIVED, SENT, interface_description, packet, section_header, tags
from bellwire.declare.interrupts import MsiX
from bellwire.declare.layout import Layout
from vfio_user import RegionIndex

SNAP = 1 << 14
"""The most bytes that are kept of a message. The length is always told."""
MOST_NAMES = 1 << 14  # bytes of names: a file must have room for other things
MESSAGES, EVENTS = 0, 1  # the interfaces of a file
MESSAGE_DISSECTOR, EVENT_DISSECTOR = "vfio-user", "bellwire"
MESSAGE_HEAD = struct.Struct("<BBH")
"""Before a message: 0 if the client sent it and 1 if the server did, a zero, and the number of descriptors."""
NAMES = 0
NAME = struct.Struct("<BBHIQ")
"""Before a name in the list of them: region, zero, bytes of the name, size and offset of what it names."""
_RECEIVED, _SENT, _EVENT = (
    tags(MESSAGE_DISSECTOR, RECEIVED),
    tags(MESSAGE_DISSECTOR, SENT),
    tags(EVENT_DISSECTOR),
)

Piece = bytes | bytearray | memoryview


class Capture:
    """A :class:`vfio_user.Tap` that writes to ``fds`` in turn, which it owns: see :class:`Files`.

    ``limit`` is the most bytes of each file. ``clock`` gives nanoseconds since 1970.
    """

    def __init__(
        self, name: str, layout: Layout, fds: Sequence[int], limit: int, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._clock = clock
        head = (
            section_header("Bellwire", f"the vfio-user device {name}"),
            interface_description("messages", "messages between the client and the device's worker", SNAP),
            interface_description("events", "events of the device that no message shows", SNAP),
            packet(EVENTS, clock(), _EVENT, (bytes([NAMES]), names(name, layout)), MOST_NAMES),
        )
        self.files = Files(fds, limit, b"".join(head))
        self.messages = self.events = 0
        self.filter = Events(self.event)
        """What tells of events. Whoever puts the capture in puts it in, too."""

    def received(self, pieces: Sequence[Piece], fds: int) -> None:
        """The client has sent a message."""
        head = MESSAGE_HEAD.pack(0, 0, fds)
        self.messages += self.files.write(packet(MESSAGES, self._clock(), _RECEIVED + head, pieces, SNAP))

    def sent(self, pieces: Sequence[Piece], fds: int) -> None:
        """The device's worker has sent a message."""
        head = MESSAGE_HEAD.pack(1, 0, fds)
        self.messages += self.files.write(packet(MESSAGES, self._clock(), _SENT + head, pieces, SNAP))

    def amount(self) -> str:
        """How much it has."""
        return f"{self.messages:,} messages, {self.events:,} events, {self.files.written:,} bytes"

    def event(self, packed: bytes) -> None:
        """Something has happened that no message shows: see :data:`bellwire.capture.events.EVENT`."""
        self.events += self.files.write(packet(EVENTS, self._clock(), _EVENT, (packed,), SNAP))


def names(device: str, layout: Layout) -> bytes:
    """The device's name and those of its registers, as far as :data:`MOST_NAMES` allows."""
    config = int(RegionIndex.CONFIG)
    found = [(index, item.offset, item) for index, plan in layout.bars.items() for item in plan.placed]
    found += [(config, each.at + item.offset, item) for each in layout.extended for item in each.placed]
    own = device.encode()[:255]
    listed = bytes([len(own)]) + own
    for region, offset, item in found:
        if isinstance(item, MsiX):
            continue
        name = item.name.encode()
        if len(listed) + NAME.size + len(name) > MOST_NAMES:
            break
        listed += NAME.pack(region, 0, len(name), min(item.size, 0xFFFFFFFF), offset) + name
    return listed
