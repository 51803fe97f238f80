"""/dev/kvm from Python, through ctypes alone: `Kvm` → `Vm` → `Vcpu`, one class per file descriptor.

    install_kick_handler()
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        ...
        match vcpu.run():
            case MmioWrite(addr, data): ...

Each method's docstring names the ioctl that it makes and the section of the kernel's
Documentation/virt/kvm/api.rst that explains it. x86-64 only.
"""

from __future__ import annotations

from .capability import Capability
from .coalesced import CoalescedRing, CoalescedWrite
from .cpuid import Cpuid, CpuidEntry
from .errors import (
    ConflictError,
    InvalidArgumentError,
    IoctlError,
    KvmError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from .exits import (
    Debug,
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    Interrupted,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MemoryFault,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    Shutdown,
    SystemEvent,
    Unknown,
)
from .ioregion import IoRegion
from .kick import KICK_SIGNAL, install_kick_handler
from .kvm import Kvm
from .routing import Irqchip, IrqchipRoute, MsiRoute, Route, default_routes
from .stats import Stats
from .structs import (
    ClockData,
    Debugregs,
    Dtable,
    IrqchipState,
    LapicState,
    PitState2,
    Regs,
    Segment,
    Sregs,
    VcpuEvents,
    Xcrs,
    Xsave,
)
from .vcpu import MpState, Vcpu
from .vm import MemoryFlags, Vm

__all__ = [
    "KICK_SIGNAL",
    "Capability",
    "ClockData",
    "CoalescedRing",
    "CoalescedWrite",
    "ConflictError",
    "Cpuid",
    "CpuidEntry",
    "Debug",
    "Debugregs",
    "Dtable",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "Interrupted",
    "InvalidArgumentError",
    "IoIn",
    "IoOut",
    "IoRegion",
    "IoapicEoi",
    "IoctlError",
    "IrqWindowOpen",
    "Irqchip",
    "IrqchipRoute",
    "IrqchipState",
    "Kvm",
    "KvmError",
    "LapicState",
    "MemoryFault",
    "MemoryFlags",
    "MmioRead",
    "MmioWrite",
    "MpState",
    "MsiRoute",
    "MsrRead",
    "MsrWrite",
    "NotFoundError",
    "PitState2",
    "Regs",
    "Route",
    "Segment",
    "Shutdown",
    "Sregs",
    "Stats",
    "SystemEvent",
    "UnavailableError",
    "Unknown",
    "UnsupportedError",
    "Vcpu",
    "VcpuEvents",
    "Vm",
    "Xcrs",
    "Xsave",
    "default_routes",
    "install_kick_handler",
]
