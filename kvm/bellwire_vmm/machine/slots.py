"""KVM's memory slots: which pages of this process the guest sees as RAM."""

from __future__ import annotations

import mmap

from kvm_ioctls import MemoryFlags, Vm


class MemorySlots:
    """Assigns the memory slots of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._used: dict[int, tuple[int, int, int, MemoryFlags]] = {}

    def add(self, guest_address: int, size: int, host_address: int, *, readonly: bool = False) -> int:
        """Map ``size`` bytes of this process at ``guest_address``. Returns the slot's number."""
        slot = next(number for number in range(len(self._used) + 1) if number not in self._used)
        flags = MemoryFlags.READONLY if readonly else MemoryFlags(0)
        self._vm.set_user_memory_region(slot, guest_address, size, host_address, flags)
        self._used[slot] = guest_address, size, host_address, flags
        return slot

    def log(self, slot: int, wanted: bool) -> None:
        """Begin or end the log of pages that the guest writes, for `written`."""
        guest_address, size, host_address, flags = self._used[slot]
        logged = flags | MemoryFlags.LOG_DIRTY_PAGES if wanted else flags
        self._vm.set_user_memory_region(slot, guest_address, size, host_address, logged)

    def written(self, slot: int) -> bytes:
        """The pages of a logged slot that the guest has written since the last call: one bit each, the first lowest."""
        return self._vm.get_dirty_log(slot, self._used[slot][1] // mmap.PAGESIZE)

    def remove(self, slot: int) -> None:
        """Remove a slot. No vCPU accesses its pages afterwards."""
        self._vm.delete_memory_region(slot)
        del self._used[slot]
