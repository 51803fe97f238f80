"""The registers of a device, as ``bellwire regs`` shows them."""

from __future__ import annotations

from typing import Any

from bellwire import PciDevice
from bellwire.declare.register import Register
from vfio_user import RegionIndex


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
