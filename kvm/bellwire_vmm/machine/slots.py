"""KVM's memory slots: which pages of this process the guest sees as RAM."""

from __future__ import annotations

from kvm_ioctls import MemoryFlags, Vm


class MemorySlots:
    """Assigns the memory slots of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._used: set[int] = set()

    def add(self, guest_address: int, size: int, host_address: int, *, readonly: bool = False) -> int:
        """Map ``size`` bytes of this process at ``guest_address``. Returns the slot's number."""
        slot = next(number for number in range(len(self._used) + 1) if number not in self._used)
        flags = MemoryFlags.READONLY if readonly else MemoryFlags(0)
        self._vm.set_user_memory_region(slot, guest_address, size, host_address, flags)
        self._used.add(slot)
        return slot

    def remove(self, slot: int) -> None:
        """Remove a slot. No vCPU accesses its pages afterwards."""
        self._vm.delete_memory_region(slot)
        self._used.remove(slot)
