"""What a kernel may be able to do (api.rst 4.4, 6, 7 and 8)."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """KVM_CAP_*: for `check_extension` and `enable_cap`. Both take other numbers, too."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    ENABLE_CAP = 54
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    CHECK_EXTENSION_VM = 105
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    COALESCED_PIO = 162
    X86_USER_SPACE_MSR = 188
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
