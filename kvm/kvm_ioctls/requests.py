"""Every ioctl this package makes, numbered as <linux/kvm.h> numbers it: from its structure's size."""

from __future__ import annotations

from ctypes import c_uint64

from . import structs
from .ioctl import _IO, _IOR, _IOW, _IOWR

# On /dev/kvm.
GET_API_VERSION = _IO("KVM_GET_API_VERSION", 0x00)
CREATE_VM = _IO("KVM_CREATE_VM", 0x01)
GET_MSR_INDEX_LIST = _IOWR("KVM_GET_MSR_INDEX_LIST", 0x02, structs.MsrList)
CHECK_EXTENSION = _IO("KVM_CHECK_EXTENSION", 0x03)
GET_VCPU_MMAP_SIZE = _IO("KVM_GET_VCPU_MMAP_SIZE", 0x04)
GET_SUPPORTED_CPUID = _IOWR("KVM_GET_SUPPORTED_CPUID", 0x05, structs.Cpuid2)

# On a VM.
CREATE_VCPU = _IO("KVM_CREATE_VCPU", 0x41)
SET_USER_MEMORY_REGION = _IOW("KVM_SET_USER_MEMORY_REGION", 0x46, structs.UserspaceMemoryRegion)
GET_DIRTY_LOG = _IOW("KVM_GET_DIRTY_LOG", 0x42, structs.DirtyLog)
SET_TSS_ADDR = _IO("KVM_SET_TSS_ADDR", 0x47)
SET_IDENTITY_MAP_ADDR = _IOW("KVM_SET_IDENTITY_MAP_ADDR", 0x48, c_uint64)
SET_IOREGION = _IOW("KVM_SET_IOREGION", 0x49, structs.Ioregion)
CREATE_IRQCHIP = _IO("KVM_CREATE_IRQCHIP", 0x60)
IRQ_LINE = _IOW("KVM_IRQ_LINE", 0x61, structs.IrqLevel)
GET_IRQCHIP = _IOWR("KVM_GET_IRQCHIP", 0x62, structs.IrqchipState)
SET_IRQCHIP = _IOR("KVM_SET_IRQCHIP", 0x63, structs.IrqchipState)
REGISTER_COALESCED_MMIO = _IOW("KVM_REGISTER_COALESCED_MMIO", 0x67, structs.CoalescedMmioZone)
UNREGISTER_COALESCED_MMIO = _IOW("KVM_UNREGISTER_COALESCED_MMIO", 0x68, structs.CoalescedMmioZone)
SET_GSI_ROUTING = _IOW("KVM_SET_GSI_ROUTING", 0x6A, structs.IrqRouting)
IRQFD = _IOW("KVM_IRQFD", 0x76, structs.Irqfd)
CREATE_PIT2 = _IOW("KVM_CREATE_PIT2", 0x77, structs.PitConfig)
IOEVENTFD = _IOW("KVM_IOEVENTFD", 0x79, structs.Ioeventfd)
SET_CLOCK = _IOW("KVM_SET_CLOCK", 0x7B, structs.ClockData)
GET_CLOCK = _IOR("KVM_GET_CLOCK", 0x7C, structs.ClockData)
GET_PIT2 = _IOR("KVM_GET_PIT2", 0x9F, structs.PitState2)
SET_PIT2 = _IOW("KVM_SET_PIT2", 0xA0, structs.PitState2)
SIGNAL_MSI = _IOW("KVM_SIGNAL_MSI", 0xA5, structs.Msi)

# On a vCPU.
RUN = _IO("KVM_RUN", 0x80)
GET_REGS = _IOR("KVM_GET_REGS", 0x81, structs.Regs)
SET_REGS = _IOW("KVM_SET_REGS", 0x82, structs.Regs)
GET_SREGS = _IOR("KVM_GET_SREGS", 0x83, structs.Sregs)
SET_SREGS = _IOW("KVM_SET_SREGS", 0x84, structs.Sregs)
TRANSLATE = _IOWR("KVM_TRANSLATE", 0x85, structs.Translation)
INTERRUPT = _IOW("KVM_INTERRUPT", 0x86, structs.Interrupt)
GET_MSRS = _IOWR("KVM_GET_MSRS", 0x88, structs.Msrs)
SET_MSRS = _IOW("KVM_SET_MSRS", 0x89, structs.Msrs)
GET_LAPIC = _IOR("KVM_GET_LAPIC", 0x8E, structs.LapicState)
SET_LAPIC = _IOW("KVM_SET_LAPIC", 0x8F, structs.LapicState)
SET_CPUID2 = _IOW("KVM_SET_CPUID2", 0x90, structs.Cpuid2)
GET_CPUID2 = _IOWR("KVM_GET_CPUID2", 0x91, structs.Cpuid2)
GET_MP_STATE = _IOR("KVM_GET_MP_STATE", 0x98, structs.MpStateStruct)
SET_MP_STATE = _IOW("KVM_SET_MP_STATE", 0x99, structs.MpStateStruct)
SET_GUEST_DEBUG = _IOW("KVM_SET_GUEST_DEBUG", 0x9B, structs.GuestDebug)
GET_VCPU_EVENTS = _IOR("KVM_GET_VCPU_EVENTS", 0x9F, structs.VcpuEvents)
SET_VCPU_EVENTS = _IOW("KVM_SET_VCPU_EVENTS", 0xA0, structs.VcpuEvents)
GET_DEBUGREGS = _IOR("KVM_GET_DEBUGREGS", 0xA1, structs.Debugregs)
SET_DEBUGREGS = _IOW("KVM_SET_DEBUGREGS", 0xA2, structs.Debugregs)
SET_TSC_KHZ = _IO("KVM_SET_TSC_KHZ", 0xA2)
GET_XSAVE = _IOR("KVM_GET_XSAVE", 0xA4, structs.Xsave)
SET_XSAVE = _IOW("KVM_SET_XSAVE", 0xA5, structs.Xsave)
GET_XCRS = _IOR("KVM_GET_XCRS", 0xA6, structs.Xcrs)
SET_XCRS = _IOW("KVM_SET_XCRS", 0xA7, structs.Xcrs)
KVMCLOCK_CTRL = _IO("KVM_KVMCLOCK_CTRL", 0xAD)
GET_TSC_KHZ = _IO("KVM_GET_TSC_KHZ", 0xA3)

# On a VM or a vCPU.
ENABLE_CAP = _IOW("KVM_ENABLE_CAP", 0xA3, structs.EnableCap)
GET_STATS_FD = _IO("KVM_GET_STATS_FD", 0xCE)
