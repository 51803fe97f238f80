"""An ioregionfd: guest accesses become commands on a socket (KVM_SET_IOREGION, a proposal of 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from .structs import Ioregion


class IoRegionFlags(IntFlag):
    """KVM_IOREGION_*: ports or memory, posted writes, and whether a region is removed."""

    PIO = 1
    POSTED_WRITES = 2
    DEASSIGN = 4


@dataclass(frozen=True, slots=True)
class IoRegion:
    """`memory_size` bytes of guest memory, or I/O ports, at `guest_paddr`, served through two descriptors.

    KVM writes commands, with `user_data` in each, to `write_fd` and reads responses from `read_fd`; both may
    be the same socket. With `posted_writes` the vCPU does not wait for a write's response.
    """

    guest_paddr: int
    memory_size: int
    user_data: int
    read_fd: int
    write_fd: int
    pio: bool = False
    posted_writes: bool = False

    def struct(self, *, deassign: bool = False) -> Ioregion:
        """Return `struct kvm_ioregion`."""
        flags = IoRegionFlags(0)
        if self.pio:
            flags |= IoRegionFlags.PIO
        if self.posted_writes:
            flags |= IoRegionFlags.POSTED_WRITES
        if deassign:
            flags |= IoRegionFlags.DEASSIGN
        return Ioregion(self.guest_paddr, self.memory_size, self.user_data, self.read_fd, self.write_fd, int(flags))
