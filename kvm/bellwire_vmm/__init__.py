"""A minimal VMM for vfio-user devices: guest memory, a PCI bus, doorbells, interrupts, and small guests.

    with Machine() as machine:
        device = machine.plug(Client.connect("/run/device.sock"))
        machine.load("bell", pack_rings([Ring(bar=1, offset=0, count=1000)]))
        result = machine.run(timeout=10)

To read it in an afternoon, begin with `vmm` (the machine) and `machine.processor` (the loop around KVM_RUN). Go on
with `device.proxy`, which joins one device to the bus. Beside it, `registrations`, `relay` and `zones` are the way of a
guest's writes, as is `machine.coalescing`; `areas` is memory shared with the device; `interrupts`, `msix`, `intx` and
`vectors` are the way back to the guest. `machine.boot` and `guests` are what runs in the machine. With a `board` around
the machine, and a kernel that `linux` has read, that may be Linux. `saved` puts a machine into a file, `moving` takes
it elsewhere.
"""

from __future__ import annotations

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.registrations import Route
from bellwire_vmm.device.zones import Zone
from bellwire_vmm.errors import AddressConflictError, DeviceRefusedError, GuestImageError, VmmError, ZoneRefusedError
from bellwire_vmm.machine.processor import Mark
from bellwire_vmm.vmm import Machine, RunResult

__all__ = [
    "AddressConflictError",
    "DeviceRefusedError",
    "GuestImageError",
    "Machine",
    "Mark",
    "ProxyDevice",
    "Route",
    "RunResult",
    "VmmError",
    "Zone",
    "ZoneRefusedError",
]
