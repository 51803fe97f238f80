"""The registers of a device, and its client's memory maps, as commands show them."""

from __future__ import annotations

import itertools
from typing import Any

from bellwire import PciDevice
from bellwire.declare.register import Register
from vfio_user import RegionIndex, Session

MOST_MAPS = 256  # of a client's maps are shown: it may have 65535


def registers(device: PciDevice) -> list[dict[str, Any]]:
    """The stored value of every register, by name: of the BARs, then of extended capabilities. Runs no read hook."""
    layout = device.layout
    placed = [(index, item.offset, item) for index, plan in layout.bars.items() for item in plan.placed]
    placed += [(RegionIndex.CONFIG, each.at + item.offset, item) for each in layout.extended for item in each.placed]
    found = []
    for region, offset, item in placed:
        if isinstance(item, Register):
            value = item.load(device.core.state.registers[item.bar.index])
            found.append(
                {
                    "name": item.name,
                    "bar": int(region),
                    "offset": offset,
                    "size": item.size,
                    "access": item.access.value,
                    "value": int(value),
                    "meaning": item.meaning(value),
                }
            )
    return found


def maps(session: Session | None) -> list[dict[str, Any]]:
    """The first MOST_MAPS ranges of guest memory that the client has mapped, in order of address."""
    ranges = session.dma if session is not None else ()
    return [
        {
            "address": each.start,
            "size": each.size,
            "readable": each.readable,
            "writable": each.writable,
            "shared": each.view is not None,
        }
        for each in itertools.islice(ranges, MOST_MAPS)
    ]
