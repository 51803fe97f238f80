"""Each vCPU's place among the others, and words for instructions."""

from __future__ import annotations

from typing import cast

import pytest

from bellwire_vmm.machine.cpuid import cpuid_of
from bellwire_vmm.machine.instruction import kind
from kvm_ioctls import Cpuid, CpuidEntry, Kvm

INDEXED = 1


class Fake:
    """As much of KVM as is asked."""

    def __init__(self, deadline: int) -> None:
        self.deadline = deadline

    def check_extension(self, _: int) -> int:
        return self.deadline


def supported() -> Cpuid:
    return Cpuid(
        [
            CpuidEntry(0x0, eax=0xD),
            CpuidEntry(0x1, ebx=0x7F12_0800, ecx=1 << 21, edx=0x178B_FBFF),
            CpuidEntry(0x4, 0, INDEXED, eax=0xFC00_4121),
            CpuidEntry(0x4, 1, INDEXED),
            CpuidEntry(0xB, 0, INDEXED, edx=99),
            CpuidEntry(0x8000_0001, ecx=1 << 1 | 1 << 5),
            CpuidEntry(0x8000_0008, eax=0x3028, ecx=0x7007),
            CpuidEntry(0x8000_001E, eax=77, ebx=78, ecx=79),
            CpuidEntry(0x8000_0026, 0, INDEXED, edx=99),
        ]
    )


def of(number: int, vcpus: int, deadline: int = 1) -> Cpuid:
    return cpuid_of(cast("Kvm", Fake(deadline)), supported(), number, vcpus)


def entry(cpuid: Cpuid, function: int, index: int = 0) -> CpuidEntry:
    found = cpuid.find(function, index)
    assert found is not None
    return found


@pytest.mark.parametrize(("vcpus", "width"), [(1, 0), (2, 1), (3, 2), (8, 3)])
def test_each_vcpu_is_a_core_with_its_number_for_its_apic_id(vcpus: int, width: int) -> None:
    for number in range(vcpus):
        cpuid = of(number, vcpus)
        assert entry(cpuid, 1).ebx == number << 24 | vcpus << 16 | 0x0800
        thread, core, end = (entry(cpuid, 0xB, level) for level in range(3))
        assert (thread.eax, thread.ebx, thread.ecx, thread.edx) == (0, 1, 0x100, number)
        assert (core.eax, core.ebx, core.ecx, core.edx) == (width, vcpus, 0x201, number)
        assert (end.ebx, end.ecx >> 8) == (0, 0)
        assert entry(cpuid, 0x8000_0008).ecx == width << 12 | vcpus - 1
        assert entry(cpuid, 0x8000_001E).eax == number
        assert entry(cpuid, 4).eax >> 26 == (1 << width) - 1
        assert entry(cpuid, 4, 1).eax == 0


def test_nothing_of_the_hosts_topology_is_left() -> None:
    assert of(1, 2).find(0x8000_0026) is None


def test_one_vcpu_claims_no_siblings() -> None:
    assert not entry(of(0, 1), 1).edx & 1 << 28
    assert not entry(of(0, 1), 0x8000_0001).ecx & 1 << 1
    assert entry(of(0, 2), 1).edx & 1 << 28
    assert entry(of(0, 2), 0x8000_0001).ecx & 1 << 1


@pytest.mark.parametrize("deadline", [0, 1])
def test_it_says_that_there_is_a_hypervisor_and_what_its_timer_can(deadline: int) -> None:
    ecx = entry(of(0, 1, deadline), 1).ecx
    assert ecx >> 31
    assert ecx >> 24 & 1 == deadline
    assert ecx >> 21 & 1  # kept


def test_what_kvm_supports_is_left_as_it_was() -> None:
    cpuid = supported()
    cpuid_of(cast("Kvm", Fake(1)), cpuid, 1, 4)
    assert cpuid.entries == supported().entries


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("c4 42 69 f7 c0", "AVX or BMI"),
        ("c5 f8 77", "AVX or BMI"),
        ("62 f1 7c 48 28", "AVX-512"),
        ("d9 e8", "x87"),
        ("0f 28 c1", "SSE"),
        ("66 0f 6f 06", "SSE"),
        ("66 0f 38 00 c1", "SSE"),
        ("f3 48 0f b8 c1", "popcnt"),
        ("f0 48 0f c7 0f", "cmpxchg16b, rdrand or the like"),
        ("48 0f ae 07", "a save or restore of the FPU's state, or a fence"),
        ("cc", "int3"),
        ("cd 80", "int n"),
        ("90", ""),
        ("0f", ""),
        ("66 66", ""),
        ("", ""),
    ],
)
def test_instructions_have_words(code: str, word: str) -> None:
    assert kind(bytes.fromhex(code)) == word
