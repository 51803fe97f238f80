"""The DEVICE_GET_* commands: how a server answers them, and how a client checks the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vfio_user.backend import Backend
from vfio_user.constants import PCI_IRQS, PCI_REGIONS, Command, Mechanism
from vfio_user.errors import FramingError, ProtocolError
from vfio_user.fields import Fields
from vfio_user.io_fds import (
    ENTRY_48,
    RATIFIED_ENTRIES,
    Entries,
    ShadowIoEventFd,
    SubRegion,
    descriptors,
    mechanism,
    pack_sub_regions,
)
from vfio_user.io_fds import INFO as IO_FDS_INFO
from vfio_user.irqs import INFO as IRQ_INFO
from vfio_user.message import Message
from vfio_user.regions import DEVICE as DEVICE_INFO
from vfio_user.regions import REGION as REGION_INFO
from vfio_user.regions import DeviceInfo, Region
from vfio_user.version import MAJOR, MINOR, Capabilities, Version

_UNASKED = frozenset((Mechanism.IOEVENTFD, Mechanism.IOREGIONFD))  # mechanisms for a client that does not send io_fds
LARGEST_ANSWER = 1 << 20  # the largest argsz that a client accepts from a server


class Reply(NamedTuple):
    """The answer to a command: pieces of the payload, and the fds to send with it.

    The sender keeps ``fds``, and closes those in ``given`` once they are sent.
    """

    parts: Sequence[bytes | memoryview] = ()
    fds: Sequence[int] = ()
    given: Sequence[int] = ()


DONE = Reply()
"""The answer without a payload."""


class Getters:
    """Answers DEVICE_GET_* for ``backend``, once :meth:`agree` was called."""

    def __init__(
        self, backend: Backend, regions: Sequence[Region], entry_size: int, entries: Entries = RATIFIED_ENTRIES
    ) -> None:
        self.client = Capabilities()
        self.mechanisms: frozenset[Mechanism] = frozenset()
        self._backend = backend
        self._regions = regions
        self._entry_size = entry_size
        self._entries = entries

    def version(self, message: Message, limits: Capabilities) -> tuple[Capabilities, Version]:
        """VERSION: what the client can take, and the answer. Raises FramingError for another major version."""
        asked = Version.unpack(message.payload)
        if asked.major != MAJOR:
            raise FramingError(f"VERSION: {asked.major}.{asked.minor}, expected {MAJOR}.0 to {MAJOR}.{MINOR}")
        self.agree(asked.capabilities, limits)
        ours = limits.within(asked.capabilities)
        return asked.capabilities, Version(MAJOR, min(asked.minor, MINOR), ours)

    def agree(self, client: Capabilities, limits: Capabilities) -> None:
        """Answer as this client can take it, and within ``limits``."""
        self.client = client
        known = client.io_fds
        self.mechanisms = _UNASKED if known is None else known & (limits.io_fds or frozenset())

    def device_info(self, message: Message) -> Reply:
        """DEVICE_GET_INFO: the device's flags and how many regions and kinds of interrupt there are."""
        _request(message, DEVICE_INFO)
        return Reply([DeviceInfo(self._backend.device_flags, PCI_REGIONS, PCI_IRQS).pack()])

    def region_info(self, message: Message) -> Reply:
        """DEVICE_GET_REGION_INFO. A reply that is cut short, because argsz is too small, has no descriptor."""
        argsz, _, index = _request(message, REGION_INFO)[:3]
        region = self._regions[_index(message, index, PCI_REGIONS)]
        if not self.client.max_msg_fds:
            region = region.unmapped()
        payload = region.info.pack(argsz)
        whole = not region.info.areas or len(payload) > REGION_INFO.size
        return Reply([payload], [region.fd] if whole and region.fd is not None else [])

    def io_fds(self, message: Message, call: Callable[..., Sequence[SubRegion]]) -> Reply:
        """DEVICE_GET_REGION_IO_FDS. ``call`` calls the backend and turns its exceptions into error replies."""
        argsz, flags, index, count = _request(message, IO_FDS_INFO, self._entries.head)
        if flags or count:
            raise ProtocolError(f"{message.name}: flags {flags:#x} and count {count}, expected 0 and 0")
        index = _index(message, index, PCI_REGIONS)
        found = call(Command.DEVICE_GET_REGION_IO_FDS, self._backend.sub_regions, index, self.mechanisms)
        subs = self._offered(found)
        shadow = any(isinstance(sub, ShadowIoEventFd) for sub in subs)
        entries, fds = pack_sub_regions(subs, ENTRY_48 if shadow else self._entry_size, self._entries)
        need = self._entries.head + len(entries)
        info = IO_FDS_INFO.pack(need, 0, index, len(subs))
        return Reply([info]) if argsz < need else Reply([info, entries], fds)

    def _offered(self, subs: Sequence[SubRegion]) -> list[SubRegion]:
        """The sub-regions whose mechanism the client knows, and whose fds fit into one message."""
        most = min(self.client.max_msg_fds, Capabilities.MOST_FDS)
        fds: set[int] = set()
        offered = []
        for sub in subs:
            if mechanism(sub) in self.mechanisms and len(fds | descriptors(sub)) <= most:
                fds |= descriptors(sub)
                offered.append(sub)
        return offered

    def irq_info(self, message: Message) -> Reply:
        """DEVICE_GET_IRQ_INFO: how many interrupts of a kind there are, and their flags."""
        _, _, index, _ = _request(message, IRQ_INFO)
        return Reply([self._backend.irq(_index(message, index, PCI_IRQS)).pack()])


def _request(message: Message, layout: Fields, least: int = 0) -> tuple[int, ...]:
    """The fields of a getter's request, the first of which is argsz: at least ``least``, or the size of the fields.

    Some clients (SPDK is one) send the whole buffer for the reply as the request: bytes after the fields are ignored.
    """
    if len(message.payload) < layout.size:
        raise ProtocolError(f"{message.name}: {len(message.payload)} bytes, expected at least {layout.size}")
    fields: tuple[int, ...] = layout.unpack_from(message.payload)
    least = least or layout.size
    if fields[0] < least:
        raise ProtocolError(f"{message.name}: argsz {fields[0]}, expected at least {least}")
    return fields


def _index(message: Message, index: int, count: int) -> int:
    if index >= count:
        raise ProtocolError(f"{message.name}: index {index}, expected 0 to {count - 1}")
    return index


def believed(need: int, command: Command) -> int:
    """Check the argsz that a server needs for its answer. Raises ProtocolError if it is too large."""
    if need > LARGEST_ANSWER:
        raise ProtocolError(f"{command.name} reply: argsz {need}, at most {LARGEST_ANSWER} is believed")
    return need


def check_same(index: int, asked: int, command: Command) -> None:
    """Raise ProtocolError if a server answers for another index than the client has asked for."""
    if index != asked:
        raise ProtocolError(f"{command.name} reply: index {index}, asked was {asked}")
