"""Identify (§5.15): which data structure the host asks for."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte, Command
from bellwire.bundled.nvme.history import SIZE_UNITS
from bellwire.bundled.nvme.identify import CONTROLLER_ID, Abilities
from bellwire.bundled.nvme.namespace import common_capabilities
from bellwire.bundled.nvme.namespaces import id_list
from bellwire.bundled.nvme.sanitize import CAPABILITIES
from bellwire.bundled.nvme.self_test import MINUTES
from bellwire.bundled.nvme.status import CommandError, Status

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

NOTHING = bytes(4096)
"""The data for an ID that is valid but not active (§6.1.5)."""


class Cns(IntEnum):
    """Controller or Namespace Structure (§5.15.1)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    DESCRIPTORS = 0x03
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    CONTROLLERS_OF_NAMESPACE = 0x12
    CONTROLLERS = 0x13


class Inquiry:
    """The answers to Identify for ``controller``, 4096 bytes each."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def page(self, command: Command) -> bytes:
        """The data structure that ``command`` asks for. Raises a CommandError."""
        nsid, above = command.nsid, command.cdw10 >> 16
        namespaces = self._controller.namespaces
        match command.cdw10 & 0xFF:
            case Cns.NAMESPACE if nsid == ALL_NAMESPACES:
                return common_capabilities()
            case Cns.NAMESPACE:
                space = namespaces.find(nsid)
                return space.identify() if space is not None and space.attached else NOTHING
            case Cns.CONTROLLER:
                return self._controller.identity.page(self._abilities())
            case Cns.ACTIVE_NAMESPACES:
                return id_list(namespaces.attached, _listable(nsid))
            case Cns.DESCRIPTORS:
                return namespaces.active(nsid).descriptors()
            case Cns.ALLOCATED_NAMESPACES:
                return id_list(namespaces.allocated, _listable(nsid))
            case Cns.ALLOCATED_NAMESPACE:
                space = namespaces.find(nsid)
                return space.identify() if space is not None else NOTHING
            case Cns.CONTROLLERS_OF_NAMESPACE:
                return _controllers(above, there=namespaces.existing(nsid).attached)
            case Cns.CONTROLLERS:
                return _controllers(above, there=True)
            case _:
                raise CommandError(Status.INVALID_FIELD, Byte.CDW10)

    def _abilities(self) -> Abilities:
        namespaces = self._controller.namespaces
        return Abilities(
            namespaces.most, namespaces.capacity, namespaces.unallocated, MINUTES, CAPABILITIES, SIZE_UNITS
        )


def _listable(nsid: int) -> int:
    """Check the ID above which IDs are listed."""
    if nsid >= 0xFFFF_FFFE:
        raise CommandError(Status.INVALID_NAMESPACE, Byte.NSID)
    return nsid


def _controllers(least: int, *, there: bool) -> bytes:
    """A Controller List (§4.12) of IDs from ``least`` on: this controller, if it is ``there``."""
    listed = struct.pack("<HH", 1, CONTROLLER_ID) if there and least <= CONTROLLER_ID else b""
    return listed.ljust(4096, b"\0")
