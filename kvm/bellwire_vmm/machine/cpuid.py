"""What the CPUID instruction returns on each vCPU: the features that KVM supports, and the vCPU's APIC id."""

from __future__ import annotations

from dataclasses import replace

from kvm_ioctls import Capability, Cpuid, CpuidEntry, Kvm

_SIGNIFICANT_INDEX = 1
_HYPERVISOR, _TSC_DEADLINE = 1 << 31, 1 << 24  # leaf 1, ECX
_HYPER_THREADING = 1 << 28  # leaf 1, EDX: more than one logical processor in the package
_LEGACY_CORES = 1 << 1  # leaf 0x8000_0001, ECX: and they are cores, on AMD's
_THREAD, _CORE = 1, 2


def cpuid_of(kvm: Kvm, supported: Cpuid, number: int, vcpus: int) -> Cpuid:
    """The leaves of vCPU ``number`` of ``vcpus``. The vCPUs are cores of one package; their APIC ids are their numbers.

    Source: Intel SDM vol. 3, 9.9; AMD APM vol. 3, appendix E. Linux warns when these leaves contradict the firmware's
    tables.
    """
    deadline = _TSC_DEADLINE if kvm.check_extension(Capability.TSC_DEADLINE_TIMER) else 0
    width = (vcpus - 1).bit_length()
    leaves = []
    for entry in supported:
        entry = replace(entry)
        match entry.function:
            case 0x1:
                entry.ebx = entry.ebx & 0xFF00 | vcpus << 16 | number << 24
                entry.ecx |= _HYPERVISOR | deadline
                entry.edx = entry.edx & ~_HYPER_THREADING | (_HYPER_THREADING if vcpus > 1 else 0)
            case 0x4 if entry.eax & 0x1F:
                entry.eax = entry.eax & 0x3FFF | (1 << width) - 1 << 26
            case 0xB | 0x1F | 0x8000_0026:
                continue  # the host's topology
            case 0x8000_0001:
                entry.ecx = entry.ecx & ~_LEGACY_CORES | (_LEGACY_CORES if vcpus > 1 else 0)
            case 0x8000_0008:
                entry.ecx = width << 12 | vcpus - 1
            case 0x8000_001E:
                entry.eax, entry.ebx, entry.ecx = number, number, 0
        leaves.append(entry)
    basic = supported.find(0)
    if basic is not None and basic.eax >= 0xB:
        leaves += [_level(0, 0, 1, _THREAD, number), _level(1, width, vcpus, _CORE, number), _level(2, 0, 0, 0, number)]
    return Cpuid(leaves)


def _level(index: int, shift: int, processors: int, kind: int, number: int) -> CpuidEntry:
    """Leaf 0xB: for each level, the number of processors, and how many bits of the APIC id distinguish them."""
    return CpuidEntry(0xB, index, _SIGNIFICANT_INDEX, eax=shift, ebx=processors, ecx=kind << 8 | index, edx=number)
