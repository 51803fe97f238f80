"""What the machine offers its devices: address spaces, memory slots, interrupts, places for BARs."""

from __future__ import annotations

import threading
from typing import Protocol

from bellwire_vmm.machine.bus import AddressSpace
from bellwire_vmm.machine.coalescing import Coalescing
from bellwire_vmm.machine.gsis import GsiTable
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.machine.slots import MemorySlots
from bellwire_vmm.machine.windows import HIGH_MEMORY, LOW_MEMORY, PORTS, Window
from kvm_ioctls import Vm


class Addressed(Protocol):
    """Something that needs an address: a BAR."""

    @property
    def ports(self) -> bool:
        """Whether it decodes I/O ports."""

    @property
    def wide(self) -> bool:
        """Whether its address may have 64 bits."""


class Platform:
    """Shared by the machine and its devices; ``lock`` serialises every change to who answers where."""

    def __init__(self, vm: Vm, memory: GuestMemory) -> None:
        self.vm = vm
        self.memory = memory
        self.memory_space = AddressSpace()
        self.port_space = AddressSpace()
        self.slots = MemorySlots(vm)
        self.gsis = GsiTable(vm)
        self.lock = threading.RLock()
        self.coalescing = Coalescing(vm, self.lock)
        self._low, self._high, self._ports = Window(LOW_MEMORY), Window(HIGH_MEMORY), Window(PORTS)

    def space(self, bar: Addressed) -> AddressSpace:
        """The address space that ``bar`` lies in."""
        return self.port_space if bar.ports else self.memory_space

    def window(self, bar: Addressed) -> Window:
        """The window in which firmware places ``bar``."""
        if bar.ports:
            return self._ports
        return self._high if bar.wide else self._low
