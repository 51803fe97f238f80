from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from kvm_ioctls import IoRegion, NotFoundError, UnsupportedError
from kvm_ioctls.structs import Ioregion
from realmode import HLT, MMIO, Guest

Boot = Callable[..., Guest]


def test_the_flags_are_the_proposals() -> None:
    region = IoRegion(MMIO, 8, 7, read_fd=3, write_fd=4, pio=True, posted_writes=True)
    packed = region.struct()
    assert isinstance(packed, Ioregion)
    assert (packed.guest_paddr, packed.memory_size, packed.user_data) == (MMIO, 8, 7)
    assert (packed.read_fd, packed.write_fd, packed.flags) == (3, 4, 0b011)
    assert region.struct(deassign=True).flags == 0b111
    assert IoRegion(MMIO, 8, 7, 3, 4).struct().flags == 0


@pytest.mark.kvm
def test_the_probe_leaves_nothing_behind(boot: Boot) -> None:
    vm = boot(HLT).vm
    before = len(os.listdir("/proc/self/fd"))
    assert vm.has_ioregion() == vm.has_ioregion()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.kvm
def test_a_kernel_without_ioregions_says_so_and_one_with_them_serves(boot: Boot) -> None:
    vm = boot(HLT).vm
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        region = IoRegion(MMIO, 4, 1, read_fd=ours.fileno(), write_fd=ours.fileno(), posted_writes=True)
        if vm.has_ioregion():
            vm.set_ioregion(region)
            vm.ioregion_deassign(region)
            with pytest.raises(NotFoundError):
                vm.ioregion_deassign(region)
        else:
            with pytest.raises(UnsupportedError, match=r"KVM_SET_IOREGION\(guest_paddr=0xd0000000") as caught:
                vm.set_ioregion(region)
            assert caught.value.errno == errno.ENOTTY
            with pytest.raises(UnsupportedError):
                vm.ioregion_deassign(region)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("answer", "present"), [(errno.ENOTTY, False), (errno.EINVAL, False), (errno.ENOENT, True), (0, True)]
)
def test_the_probe_believes_the_answer_to_the_request_itself(
    boot: Boot, monkeypatch: pytest.MonkeyPatch, answer: int, present: bool
) -> None:
    from kvm_ioctls import vm as module
    from kvm_ioctls.errors import ioctl_error

    def answering(fd: int, request: object, argument: object) -> int:
        if answer:
            raise ioctl_error(answer, "KVM_SET_IOREGION", {})
        return 0

    vm = boot(HLT).vm
    monkeypatch.setattr(module, "invoke", answering)
    assert vm.has_ioregion() is present
