"""The kernel's structures, field for field, from <linux/kvm.h> and <asm/kvm.h> (x86).

Names are the kernel's without `kvm_`. Where a structure ends in a flexible array, only the part before the
array is here: its size is what the ioctl's number encodes, and the modules that use it pack the rest.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from .errors import InvalidArgumentError


class Struct(ctypes.Structure):
    """A structure that refuses values which its fields cannot hold. (ctypes would truncate them silently.)"""

    def __init__(self, *values: int | tuple[int, ...], **named: int):
        super().__init__(*values, **named)
        names = (field[0] for field in self._fields_)
        for name, value in (*zip(names, values, strict=False), *named.items()):
            held = getattr(self, name)
            if value != (held if isinstance(value, int) else tuple(held)[: len(value)]):
                bits = 8 * getattr(type(self), name).size
                raise InvalidArgumentError(f"{type(self).__name__}.{name}: {value} does not fit in {bits} bits")


class UserspaceMemoryRegion(Struct):
    """A memory slot, for KVM_SET_USER_MEMORY_REGION (api.rst 4.35). Addresses and the size are in bytes."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class IrqLevel(Struct):
    """The level of an interrupt line, for KVM_IRQ_LINE (api.rst 4.25)."""

    _fields_ = (("irq", c_uint32), ("level", c_uint32))


class IrqchipState(Struct):
    """KVM_GET_IRQCHIP and KVM_SET_IRQCHIP (api.rst 4.26): what `chip` holds depends on the controller."""

    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512))


class PitConfig(Struct):
    """The configuration of the i8254 timer, for KVM_CREATE_PIT2 (api.rst 4.71)."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class Irqfd(Struct):
    """An eventfd that triggers a GSI, for KVM_IRQFD (api.rst 4.75)."""

    _fields_ = (
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    )


class Ioeventfd(Struct):
    """An eventfd that a guest's write signals, for KVM_IOEVENTFD (api.rst 4.59)."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class IoeventfdPosting(Struct):
    """The same, with the address at which KVM stores the value: of a proposal that is not merged."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("post_addr", c_uint64),
        ("pad", c_uint8 * 24),
    )


class CoalescedMmioZone(Struct):
    """KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO (api.rst 4.116)."""

    _fields_ = (("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32))


class Ioregion(Struct):
    """KVM_SET_IOREGION, version 3 of a proposal that was never merged."""

    _fields_ = (
        ("guest_paddr", c_uint64),
        ("memory_size", c_uint64),
        ("user_data", c_uint64),
        ("read_fd", c_int32),
        ("write_fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 28),
    )


class IrqRouting(Struct):
    """The head of KVM_SET_GSI_ROUTING (api.rst 4.52); `nr` entries of 48 bytes follow."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32))


class Msi(Struct):
    """One MSI, for KVM_SIGNAL_MSI (api.rst 4.70)."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )


class EnableCap(Struct):
    """A capability to turn on, with its arguments, for KVM_ENABLE_CAP (api.rst 4.37)."""

    _fields_ = (
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    )


class MsrList(Struct):
    """The head of KVM_GET_MSR_INDEX_LIST (api.rst 4.3); `nmsrs` 32-bit indices follow."""

    _fields_ = (("nmsrs", c_uint32),)


class Msrs(Struct):
    """The head of KVM_GET_MSRS and KVM_SET_MSRS (api.rst 4.18); `nmsrs` entries of 16 bytes follow."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


class Cpuid2(Struct):
    """The head of the CPUID requests (api.rst 4.20 and 4.46); `nent` entries of 40 bytes follow."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


class MpStateStruct(Struct):
    """KVM_GET_MP_STATE and KVM_SET_MP_STATE (api.rst 4.38)."""

    _fields_ = (("mp_state", c_uint32),)


class Interrupt(Struct):
    """The vector of an external interrupt, for KVM_INTERRUPT (api.rst 4.16)."""

    _fields_ = (("irq", c_uint32),)


class GuestDebug(Struct):
    """What to debug, and the debug registers, for KVM_SET_GUEST_DEBUG (api.rst 4.87)."""

    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8))


class Translation(Struct):
    """A linear address and what it translates to, for KVM_TRANSLATE (api.rst 4.15)."""

    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class LapicState(Struct):
    """KVM_GET_LAPIC and KVM_SET_LAPIC (api.rst 4.57): the local APIC's register page."""

    _fields_ = (("regs", c_uint8 * 1024),)

    def read(self, offset: int) -> int:
        """Return the 32-bit register at `offset` (0x20: APIC id, 0x80: TPR, 0x350: LINT0, ...)."""
        return c_uint32.from_buffer(self, _lapic_offset(offset)).value

    def write(self, offset: int, value: int) -> None:
        """Change the 32-bit register at `offset` in this copy; `Vcpu.set_lapic` makes it real."""
        c_uint32.from_buffer(self, _lapic_offset(offset)).value = value


def _lapic_offset(offset: int) -> int:
    if not 0 <= offset < 1024 or offset % 16:
        raise ValueError(f"no local APIC register at {offset:#x}: expected a multiple of 16 below 0x400")
    return offset


class Regs(Struct):
    """General registers: KVM_GET_REGS and KVM_SET_REGS (api.rst 4.11)."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
        )
    )
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class Segment(Struct):
    """A segment register with its hidden part. `limit` is in bytes whatever `g` says."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - the kernel's name of the long-mode bit
    g: int
    avl: int
    unusable: int


class Dtable(Struct):
    """GDTR or IDTR: the address and the limit of a descriptor table."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))
    base: int
    limit: int


class Sregs(Struct):
    """Segment, table and control registers: KVM_GET_SREGS and KVM_SET_SREGS (api.rst 4.13)."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, Dtable) for name in ("gdt", "idt")),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )
    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


class Xsave(Struct):
    """FPU, SSE and AVX registers as XSAVE lays them out: KVM_GET_XSAVE and KVM_SET_XSAVE (api.rst 4.42)."""

    _fields_ = (("region", c_uint32 * 1024),)


class Xcrs(Struct):
    """Extended control registers: KVM_GET_XCRS and KVM_SET_XCRS (api.rst 4.44). Each entry: number, reserved, value."""

    _fields_ = (("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", c_uint64 * 32), ("padding", c_uint64 * 16))


class VcpuEvents(Struct):
    """Exceptions, interrupts and NMIs on their way: KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS (api.rst 4.31)."""

    _fields_ = (
        *(("exception", c_uint8 * 8), ("interrupt", c_uint8 * 4), ("nmi", c_uint8 * 4)),
        *(("sipi_vector", c_uint32), ("flags", c_uint32), ("smi", c_uint8 * 4), ("triple_fault", c_uint8)),
        *(("reserved", c_uint8 * 26), ("exception_has_payload", c_uint8), ("exception_payload", c_uint64)),
    )


class Debugregs(Struct):
    """Debug registers: KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS (api.rst 4.33)."""

    _fields_ = (
        *(("db", c_uint64 * 4), ("dr6", c_uint64), ("dr7", c_uint64), ("flags", c_uint64)),
        ("reserved", c_uint64 * 9),
    )


class ClockData(Struct):
    """The guest's kvm-clock, in nanoseconds: KVM_GET_CLOCK and KVM_SET_CLOCK (api.rst 4.29)."""

    _fields_ = (
        *(("clock", c_uint64), ("flags", c_uint32), ("pad0", c_uint32)),
        *(("realtime", c_uint64), ("host_tsc", c_uint64), ("pad", c_uint32 * 4)),
    )
    clock: int


class PitState2(Struct):
    """The i8254's three channels, 24 bytes each: KVM_GET_PIT2 and KVM_SET_PIT2 (api.rst 4.72)."""

    _fields_ = (("channels", c_uint8 * 72), ("flags", c_uint32), ("reserved", c_uint32 * 9))


class DirtyLog(Struct):
    """A memory slot, and where its bitmap of written pages goes: KVM_GET_DIRTY_LOG (api.rst 4.8)."""

    _fields_ = (("slot", c_uint32), ("padding1", c_uint32), ("dirty_bitmap", c_uint64))
