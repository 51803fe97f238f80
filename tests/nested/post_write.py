"""What a kernel with KVM_IOEVENTFD_FLAG_POST_WRITE stores and signals. For a kernel that has it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire_vmm.vmm import Machine
from kvm_ioctls import Hlt, IoctlError, IoOut, Kvm, MmioWrite, NotFoundError, Vm
from kvm_ioctls.ioctl import invoke
from kvm_ioctls.requests import IOEVENTFD
from kvm_ioctls.structs import IoeventfdPosting
from kvm_ioctls.vm import IoEventFlags
from realmode import HLT, MMIO, Guest, ecx, out, store
from vmm.program import Program, execute

PORT, DATAMATCH = 0x80, 0x1122_3344
VALUE = 0x8877_6655_4433_2211
AROUND = 0xA5
DEADLINE = 120.0  # seconds: the machine is emulated, and sometimes checked at every step
Boot = Callable[..., Guest]
Make = Callable[[], int]


class Place:
    """Two pages of memory, filled with AROUND. The cell lies at ``at``."""

    def __init__(self, at: int = 64) -> None:
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self.memory[:] = bytes([AROUND]) * len(self.memory)
        self._anchor = ctypes.c_char.from_buffer(self.memory)
        self._at = at
        self.address = ctypes.addressof(self._anchor) + at

    def value(self, size: int) -> int:
        """What the cell has. Nothing around it has changed."""
        start, end = self._at, self._at + size
        assert set(self.memory[:start] + self.memory[end:]) == {AROUND}
        return int.from_bytes(self.memory[start:end], "little")

    def close(self) -> None:
        del self._anchor
        self.memory.close()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as vm:
        assert vm.has_post_write(), "this kernel has no KVM_IOEVENTFD_FLAG_POST_WRITE"
        yield vm


def low(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


def rung(fd: int) -> int:
    """How often it rang since it was last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(IoctlError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


# -- what it stores


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_writes_of_every_width(eventfd: Make, place: Place, tmp_path: Path, size: int) -> None:
    bell = eventfd()
    with Machine(16 << 20) as machine:
        machine.vm.ioeventfd(bell, MMIO + 0x10, size, post_addr=place.address)
        outcome = execute(machine, Program().store(MMIO + 0x10, VALUE, size), tmp_path, timeout=60)
        assert outcome.run.ok, outcome.run
    assert (rung(bell), place.value(size)) == (1, low(VALUE, size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ports_of_every_width(boot: Boot, eventfd: Make, place: Place, size: int) -> None:
    guest, bell = boot(out(PORT, low(VALUE, 4), size) + HLT), eventfd()
    guest.vm.ioeventfd(bell, PORT, size, pio=True, post_addr=place.address)
    assert guest.run() == Hlt()
    assert (rung(bell), place.value(size)) == (1, low(VALUE, size))


def test_string_output_leaves_the_last_element(boot: Boot, eventfd: Make, place: Place) -> None:
    code = b"\xbe\x00\x20" + b"\xba\x80\x00\xb9\x05\x00" + b"\x26\xf3\x6e"  # si = 0x2000, dx = PORT, cx = 5; rep outsb
    guest, bell = boot(code + HLT), eventfd()
    guest.memory[0x2000:0x2005] = bytes(range(1, 6))
    guest.vm.ioeventfd(bell, PORT, 1, pio=True, post_addr=place.address)
    assert guest.run() == Hlt()
    assert (rung(bell), place.value(1)) == (5, 5)


def test_the_last_value_and_the_number_of_all(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, bell = boot(b"".join(store(0x10, value) for value in range(1, 51)) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
    assert guest.run() == Hlt()
    assert (rung(bell), place.value(4)) == (50, 50)


def test_a_value_to_match_is_stored_and_no_other(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, bell = boot(store(0x10, DATAMATCH + 1) + store(0x10, DATAMATCH) + store(0x10, 7) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, DATAMATCH, post_addr=place.address)
    others = [int.from_bytes(write.data, "little") for write in guest.mmio_writes()]
    assert others == [DATAMATCH + 1, 7]
    assert (rung(bell), place.value(4)) == (1, DATAMATCH)


def test_each_value_may_have_its_place(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, first, second, other = boot(store(0x10, 5) + store(0x10, 6) + HLT), eventfd(), eventfd(), Place(128)
    guest.vm.ioeventfd(first, MMIO + 0x10, 4, 5, post_addr=place.address)
    guest.vm.ioeventfd(second, MMIO + 0x10, 4, 6, post_addr=other.address)
    assert guest.run() == Hlt()
    assert [(rung(first), place.value(4)), (rung(second), other.value(4))] == [(1, 5), (1, 6)]
    other.close()


def test_a_write_of_another_width_is_the_vmms(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, bell = boot(store(0x10, 1, 2) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
    assert guest.mmio_writes() == [MmioWrite(MMIO + 0x10, b"\1\0")]
    assert (rung(bell), place.value(4)) == (0, 0xA5A5_A5A5)


def test_a_place_across_two_pages(boot: Boot, eventfd: Make) -> None:
    place = Place(mmap.PAGESIZE - 2)
    guest, bell = boot(store(0x10, DATAMATCH) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
    assert guest.run() == Hlt()
    assert (rung(bell), place.value(4)) == (1, DATAMATCH)
    place.close()


def test_memory_that_was_not_there_yet_is_faulted_in(boot: Boot, eventfd: Make) -> None:
    fd = os.memfd_create("cells")
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as memory:  # nothing has touched it
        anchor = ctypes.c_char.from_buffer(memory)
        guest, bell = boot(store(0x10, DATAMATCH) + HLT), eventfd()
        guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=ctypes.addressof(anchor) + 8)
        assert guest.run() == Hlt()
        del anchor
    assert (rung(bell), os.pread(fd, 4, 8)) == (1, DATAMATCH.to_bytes(4, "little"))
    os.close(fd)


# -- where it cannot store


def gone(how: str) -> tuple[mmap.mmap, int]:
    """Memory that cannot be written."""
    if how == "read-only":
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(4096), 1, 0x22, -1, ctypes.c_long(0))
        return memory, address
    fd = os.memfd_create("cells")
    os.ftruncate(fd, 4096)
    memory = mmap.mmap(fd, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if how == "truncated":
        os.ftruncate(fd, 0)
    else:
        libc = ctypes.CDLL(None)
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))
    os.close(fd)
    return memory, address


@pytest.mark.parametrize("how", ["read-only", "truncated"])
def test_what_cannot_be_stored_rings_nothing_and_is_the_vmms(boot: Boot, eventfd: Make, how: str) -> None:
    memory, address = gone(how)
    guest, bell = boot(store(0x10, 7) + out(PORT, 7, 4) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=address)
    guest.vm.ioeventfd(bell, PORT, 4, pio=True, post_addr=address)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\7\0\0\0")
    assert guest.run() == IoOut(PORT, 4, 1, b"\7\0\0\0")
    assert guest.run() == Hlt()
    assert rung(bell) == 0
    memory.close()


def test_memory_that_is_unmapped_rings_nothing_and_comes_back(boot: Boot, eventfd: Make) -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    size, anonymous, fixed = ctypes.c_size_t(4096), 0x22, 0x10
    address = libc.mmap(None, size, 3, anonymous, -1, ctypes.c_long(0))
    guest, bell = boot(store(0x10, 7) + store(0x10, 8) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=address)
    libc.munmap(ctypes.c_void_p(address), size)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\7\0\0\0")
    assert libc.mmap(ctypes.c_void_p(address), size, 3, anonymous | fixed, -1, ctypes.c_long(0)) == address
    assert guest.run() == Hlt()
    assert (rung(bell), ctypes.c_uint32.from_address(address).value) == (1, 8)
    libc.munmap(ctypes.c_void_p(address), size)


# -- what it refuses


@pytest.mark.parametrize("pio", [False, True])
def test_a_value_of_no_width_is_refused(vm: Vm, eventfd: Make, place: Place, pio: bool) -> None:
    assert refusal(lambda: vm.ioeventfd(eventfd(), PORT, 0, pio=pio, post_addr=place.address)) == "EINVAL"


@pytest.mark.parametrize("address", [0, 1 << 63, (1 << 64) - 4, 0xFFFF_8880_0000_0000])
def test_an_address_that_is_no_users_is_refused(vm: Vm, eventfd: Make, address: int) -> None:
    assert refusal(lambda: vm.ioeventfd(eventfd(), MMIO, 4, post_addr=address)) == "EINVAL"


def test_an_address_without_the_flag_is_ignored(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, bell = boot(store(0x10, 7) + HLT), eventfd()
    invoke(guest.vm.fd, IOEVENTFD, IoeventfdPosting(0, MMIO + 0x10, 4, bell, 0, place.address))
    assert guest.run() == Hlt()
    assert (rung(bell), place.value(4)) == (1, 0xA5A5_A5A5)


def test_the_next_flag_is_refused(vm: Vm, eventfd: Make, place: Place) -> None:
    request = IoeventfdPosting(0, MMIO, 4, eventfd(), int(IoEventFlags.POST_WRITE) << 1, place.address)
    assert refusal(lambda: invoke(vm.fd, IOEVENTFD, request)) == "EINVAL"


def test_it_collides_as_other_ioeventfds_do(vm: Vm, eventfd: Make, place: Place) -> None:
    vm.ioeventfd(eventfd(), MMIO, 4, post_addr=place.address)
    assert refusal(lambda: vm.ioeventfd(eventfd(), MMIO, 4)) == "EEXIST"
    assert refusal(lambda: vm.ioeventfd(eventfd(), MMIO, 4, 7, post_addr=place.address + 8)) == "EEXIST"


def test_it_is_removed_as_other_ioeventfds_are(boot: Boot, eventfd: Make, place: Place) -> None:
    guest, bell = boot(store(0x10, 7) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
    guest.vm.ioeventfd_deassign(bell, MMIO + 0x10, 4)
    with pytest.raises(NotFoundError):
        guest.vm.ioeventfd_deassign(bell, MMIO + 0x10, 4)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\7\0\0\0")
    assert (rung(bell), place.value(4)) == (0, 0xA5A5_A5A5)


# -- under load


def counting(times: int, size: int = 4) -> bytes:
    """Write ecx, which counts down from ``times`` to 1, to MMIO + 0x10."""
    return ecx(times) + b"\x66\x89\xc8\x66\xa3\x10\x00\x66\x49\x75\xf5"  # mov eax, ecx; mov [0x10], eax; dec ecx; jnz


def test_it_comes_and_goes_under_load(boot: Boot, eventfd: Make, place: Place) -> None:
    times = 5_000
    guest, bell = boot(counting(times) + HLT), eventfd()
    exits: list[MmioWrite] = []
    thread = threading.Thread(target=lambda: exits.extend(guest.mmio_writes()))
    thread.start()
    rings = turns = 0
    while thread.is_alive():
        guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
        guest.vm.ioeventfd_deassign(bell, MMIO + 0x10, 4)
        turns += 1
    thread.join(DEADLINE)
    rings = rung(bell)
    assert turns > 1
    assert rings + len(exits) == times
    assert [int.from_bytes(each.data, "little") for each in exits] == sorted(
        {int.from_bytes(each.data, "little") for each in exits}, reverse=True
    )


def test_memory_comes_and_goes_under_load(boot: Boot, eventfd: Make) -> None:
    times = 5_000
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    size, anonymous, fixed = ctypes.c_size_t(4096), 0x22, 0x10
    address = libc.mmap(None, size, 3, anonymous, -1, ctypes.c_long(0))
    guest, bell = boot(counting(times) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=address)
    exits: list[MmioWrite] = []
    thread = threading.Thread(target=lambda: exits.extend(guest.mmio_writes()))
    thread.start()
    while thread.is_alive():
        assert libc.mprotect(ctypes.c_void_p(address), size, 1) == 0
        assert libc.mprotect(ctypes.c_void_p(address), size, 3) == 0
        assert libc.mmap(ctypes.c_void_p(address), size, 3, anonymous | fixed, -1, ctypes.c_long(0)) == address
    thread.join(DEADLINE)
    assert rung(bell) + len(exits) == times
    libc.munmap(ctypes.c_void_p(address), size)


def test_two_vcpus_on_one_doorbell_never_mix_their_values(kvm: Kvm, eventfd: Make, place: Place, boot: Boot) -> None:
    times = 2_000
    # Each vCPU stores one pattern: mov ecx, times; mov eax, pattern; L: mov [0x10], eax; dec ecx; jnz L
    patterns = 0x0000_0000, 0xFFFF_FFFF
    loop = b"\x66\xa3\x10\x00\x66\x49\x75\xf8" + HLT
    guest, bell = boot(ecx(times) + b"\x66\xb8" + patterns[0].to_bytes(4, "little") + loop), eventfd()
    second = guest.vm.create_vcpu(1)
    second.set_cpuid2(kvm.supported_cpuid())
    guest.memory[0x2000 : 0x2000 + 64] = (ecx(times) + b"\x66\xb8" + patterns[1].to_bytes(4, "little") + loop).ljust(
        64, b"\x90"
    )
    second.set_sregs(guest.vcpu.get_sregs())
    regs = guest.vcpu.get_regs()
    regs.rip = 0x2000
    second.set_regs(regs)
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, post_addr=place.address)
    ends: list[object] = []
    threads = [threading.Thread(target=lambda vcpu=vcpu: ends.append(vcpu.run())) for vcpu in (guest.vcpu, second)]
    for thread in threads:
        thread.start()
    cell, seen = ctypes.c_uint32.from_address(place.address), set()
    while any(thread.is_alive() for thread in threads):
        seen.add(cell.value)
    for thread in threads:
        thread.join(DEADLINE)
    second.close()
    assert ends == [Hlt(), Hlt()]
    assert rung(bell) == 2 * times
    assert seen - {0xA5A5_A5A5} <= set(patterns)
