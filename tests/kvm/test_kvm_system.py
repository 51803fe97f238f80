from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvm_ioctls import (
    Capability,
    ConflictError,
    Cpuid,
    CpuidEntry,
    InvalidArgumentError,
    IoctlError,
    Kvm,
    KvmError,
    MmioWrite,
    MsiRoute,
    Segment,
    UnavailableError,
    UnsupportedError,
    Vm,
)
from kvm_ioctls.routing import pack_routes
from realmode import HLT, Guest, store

kvm_only = pytest.mark.kvm

Boot = Callable[..., Guest]


def test_a_missing_device_comes_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot open .*/kvm: No such file .*; load kvm_amd") as caught:
        Kvm.open(str(tmp_path / "kvm"))
    assert caught.value.errno == errno.ENOENT


def test_a_device_that_is_not_kvm_is_refused_and_closed(open_fds: set[int]) -> None:
    with pytest.raises(UnavailableError, match="/dev/null is not KVM"):
        Kvm.open("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == len(open_fds)


def test_every_error_is_a_kvm_error_and_an_os_error() -> None:
    assert issubclass(KvmError, OSError)
    for kind in (UnavailableError, IoctlError, ConflictError, UnsupportedError):
        assert issubclass(kind, KvmError)


@kvm_only
def test_the_api_version_is_12(kvm: Kvm) -> None:
    assert kvm.api_version() == 12


@kvm_only
def test_what_the_kernel_cannot_do_is_0(kvm: Kvm) -> None:
    assert kvm.check_extension(Capability.USER_MEMORY) == 1
    assert kvm.check_extension(1 << 20) == 0


@kvm_only
def test_the_run_page_holds_the_structure_and_a_page_of_port_data(kvm: Kvm) -> None:
    assert kvm.vcpu_mmap_size() >= 2 * 4096


@kvm_only
def test_the_msr_list_names_the_clock(kvm: Kvm) -> None:
    assert 0x10 in kvm.msr_index_list()


@kvm_only
def test_supported_cpuid_names_the_vendor(kvm: Kvm) -> None:
    leaf = kvm.supported_cpuid().find(0)
    assert leaf
    vendor = b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx))
    assert vendor.isascii()
    assert len(vendor.strip(b"\0")) == 12


@kvm_only
def test_a_closed_vm_answers_ebadf(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()
    vm.close()
    assert vm.closed
    with pytest.raises(IoctlError) as caught:
        vm.create_irqchip()
    assert caught.value.errno == errno.EBADF


@kvm_only
def test_a_forgotten_handle_warns_and_is_closed(kvm: Kvm) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.warns(ResourceWarning, match="unclosed <Vm"):
        kvm.create_vm()
    assert len(os.listdir("/proc/self/fd")) == before


@kvm_only
def test_everything_closed_leaves_no_descriptor_and_no_mapping(kvm: Kvm) -> None:
    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("kvm-vcpu")
        return len(os.listdir("/proc/self/fd")), mapped

    before = held()
    for _ in range(10):
        with Guest(kvm, store(0, 1) + HLT, irqchip=True) as guest, guest.vcpu.stats(), guest.vm.stats():
            assert isinstance(guest.run(), MmioWrite)
    assert held() == before


@kvm_only
def test_a_failed_request_leaves_no_descriptor(boot: Boot) -> None:
    guest = boot(HLT)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConflictError, match=r"KVM_CREATE_VCPU\(id=0\): File exists \(EEXIST\)"):
        guest.vm.create_vcpu(0)
    assert len(os.listdir("/proc/self/fd")) == before


@kvm_only
def test_descriptors_are_not_inherited(boot: Boot) -> None:
    guest = boot(HLT)
    with guest.vcpu.stats() as stats:
        assert not any(os.get_inheritable(fd) for fd in (guest.vm.fd, guest.vcpu.fd, stats.fd))


@kvm_only
def test_overlapping_memory_conflicts_and_the_error_shows_all_of_it(boot: Boot) -> None:
    guest = boot(HLT)
    with pytest.raises(ConflictError) as caught:
        guest.vm.set_user_memory_region(1, 0x1000, 0x1000, 0x7000_0000)
    assert caught.value.ioctl == "KVM_SET_USER_MEMORY_REGION"
    assert caught.value.arguments == {
        "slot": 1,
        "flags": 0,
        "guest_phys_addr": 0x1000,
        "memory_size": 0x1000,
        "userspace_addr": 0x7000_0000,
    }
    assert "guest_phys_addr=0x1000" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda vm: vm.set_user_memory_region(1 << 32, 0, 0, 0), "UserspaceMemoryRegion.slot"),
        (lambda vm: vm.ioeventfd(0, (1 << 64) + 0x5000), "Ioeventfd.addr"),
        (lambda vm: vm.irqfd(-1, 16), "Irqfd.fd"),
        (lambda vm: vm.signal_msi(1 << 64, 0), "Msi.address_hi"),
        (lambda vm: vm.enable_cap(0, 1 << 64), "EnableCap.args"),
        (lambda _: Segment(selector=1 << 16), "Segment.selector"),
    ],
)
def test_a_number_is_not_cut_to_fit_the_kernels_field(call: Callable[[Vm], None], field: str) -> None:
    with contextlib.closing(Vm(os.open(os.devnull, os.O_RDWR), 0)) as vm, pytest.raises(InvalidArgumentError) as caught:
        call(vm)
    assert field in str(caught.value)


def test_what_does_not_fit_into_a_list_of_entries_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"KVM_SET_GSI_ROUTING\(gsi=24, address=0x10{16}, data=0\)"):
        pack_routes([MsiRoute(24, 1 << 64, 0)])
    with pytest.raises(InvalidArgumentError, match=r"KVM_SET_CPUID2\(function=0x100000000, "):
        Cpuid([CpuidEntry(1 << 32)]).pack()


@kvm_only
def test_an_msr_value_that_does_not_fit_is_named(boot: Boot) -> None:
    with pytest.raises(InvalidArgumentError, match=r"KVM_SET_MSRS\(index=372, data=0x10{16}\)"):
        boot(HLT).vcpu.set_msrs({0x174: 1 << 64})


@kvm_only
def test_enabling_what_is_no_capability_is_refused(boot: Boot) -> None:
    guest = boot(HLT)
    with pytest.raises(IoctlError, match=r"KVM_ENABLE_CAP\(cap=0xfffff, flags=0\)"):
        guest.vm.enable_cap(0xFFFFF)


@kvm_only
def test_a_vm_counts_too(boot: Boot) -> None:
    with boot(HLT).vm.stats() as stats:
        counters = stats.read()
    assert counters
    assert all(value >= 0 for value in counters.values())


@kvm_only
def test_addresses_for_intel_are_accepted(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.set_identity_map_addr(0xFEFF_C000)
        vm.set_tss_addr(0xFEFF_D000)
