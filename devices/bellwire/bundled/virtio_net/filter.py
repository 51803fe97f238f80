"""The receive filter of a network card (virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3)."""

from __future__ import annotations

import ctypes
from enum import IntFlag

from bellwire.network.link import HEADER_SIZE

MOST_ADDRESSES = 64
"""The limit of unicast and of multicast addresses. A driver that sets more gets all frames of that kind."""
VLANS = 4096
_ADDRESS = 6
_TYPE = HEADER_SIZE + 2 * _ADDRESS
_TAGGED = b"\x81\x00"
_BROADCAST = b"\xff" * _ADDRESS


class Mode(IntFlag):
    """Modes: frames that are accepted or dropped for any address. The order is that of the commands that set them."""

    SELECTIVE = 0x01  # the opposite of the command's promiscuous: a card starts with none of these set, and takes all
    ALL_MULTICAST = 0x02
    ALL_UNICAST = 0x04
    NO_MULTICAST = 0x08
    NO_UNICAST = 0x10
    NO_BROADCAST = 0x20


class Filter(ctypes.LittleEndianStructure):
    """Addresses, modes and VLANs. It lies in the device's state, and is all zeros after a reset."""

    _fields_ = (
        ("_modes", ctypes.c_uint8),
        ("by_vlan", ctypes.c_uint8),
        ("_counts", ctypes.c_uint8 * 2),
        ("_mac", ctypes.c_uint8 * _ADDRESS),
        ("_tables", ctypes.c_uint8 * _ADDRESS * MOST_ADDRESSES * 2),
        ("_vlans", ctypes.c_uint8 * (VLANS // 8)),
    )

    _modes: int
    by_vlan: int
    """Whether the filter checks the VLANs of frames."""
    own: bytes
    """The card's address until the driver sets another."""

    @classmethod
    def at(cls, state: memoryview, own: bytes) -> Filter:
        """The filter that lies in ``state``. ``own`` is the card's address until the driver sets another."""
        made = cls.from_buffer(state)
        made.own = own
        made.refresh()
        return made

    @property
    def mac(self) -> bytes:
        """The card's address."""
        return bytes(self._mac) if any(self._mac) else self.own

    @mac.setter
    def mac(self, address: bytes) -> None:
        self._mac[:] = list(address)
        self.refresh()

    def set_mode(self, mode: Mode, on: bool) -> None:
        """Turn one mode on or off."""
        self._modes = self._modes | mode if on else self._modes & ~mode
        self.refresh()

    def set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """Set the other addresses whose frames are accepted."""
        for number, (addresses, every) in enumerate(((unicast, Mode.ALL_UNICAST), (multicast, Mode.ALL_MULTICAST))):
            if len(addresses) > MOST_ADDRESSES:
                self._modes |= every
                addresses = []
            self._counts[number] = len(addresses)
            for place, address in zip(self._tables[number], addresses, strict=False):
                place[:] = list(address)
        self.refresh()

    def set_vlan(self, vlan: int, wanted: bool) -> None:
        """Accept the frames of a VLAN, or drop them."""
        bit = 1 << vlan % 8
        self._vlans[vlan // 8] = self._vlans[vlan // 8] | bit if wanted else self._vlans[vlan // 8] & ~bit

    def refresh(self) -> None:
        """Derive the lookup tables from the bytes again, after these have changed."""
        tables = (self._tables[number][: self._counts[number]] for number in (0, 1))
        self._known = {self.mac, *(bytes(address) for table in tables for address in table)}
        self._all = not self._modes & (Mode.SELECTIVE | Mode.NO_MULTICAST | Mode.NO_UNICAST | Mode.NO_BROADCAST)

    @property
    def takes_all(self) -> bool:
        """Whether all frames are for this card, so that none need be looked at."""
        return self._all and not self.by_vlan

    def admits(self, packet: memoryview) -> bool:
        """Whether a packet, header first, is for this card."""
        if self.by_vlan and packet[_TYPE : _TYPE + 2] == _TAGGED:
            vlan = int.from_bytes(packet[_TYPE + 2 : _TYPE + 4], "big") % VLANS
            if not self._vlans[vlan // 8] >> vlan % 8 & 1:
                return False
        return self._all or self._for_us(bytes(packet[HEADER_SIZE : HEADER_SIZE + _ADDRESS]))

    def _for_us(self, address: bytes) -> bool:
        modes = Mode(self._modes)
        if address == _BROADCAST:
            refused, every = Mode.NO_BROADCAST, True
        elif address[0] & 1:
            refused, every = Mode.NO_MULTICAST, Mode.ALL_MULTICAST in modes
        else:
            refused, every = Mode.NO_UNICAST, Mode.ALL_UNICAST in modes
        return refused not in modes and (every or Mode.SELECTIVE not in modes or address in self._known)
