"""Registrations on a kernel that has ioregionfds, which this one may not: against a VM that takes notes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.registrations import Registrations
from kvm_ioctls import IoRegion, KvmError, Vm
from vfio_user import IoRegionFd

BASE, ELSEWHERE = 0xC000_0000, 0xD000_0000


class NotedVm:
    """Only what doorbells ask of a VM."""

    def __init__(self) -> None:
        self.regions: list[IoRegion] = []
        self.full = False

    def has_ioregion(self) -> bool:
        return True

    def set_ioregion(self, region: IoRegion) -> None:
        if self.full:
            raise KvmError(28, "No space left on device", "KVM_SET_IOREGION")
        self.regions.append(region)

    def ioregion_deassign(self, region: IoRegion) -> None:
        self.regions.remove(region)


@pytest.fixture
def fd() -> Iterator[int]:
    """One end of a socket, which the doorbells close."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        yield ours.detach()


def made(vm: NotedVm, bar: Bar, *regions: IoRegionFd) -> Registrations:
    return Registrations(cast("Any", vm), [(bar, list(regions))])


def at(bar: Bar, address: int) -> Bar:
    bar.address = address
    return bar


def test_an_ioregion_is_registered_where_its_bar_lies_and_follows_it(fd: int) -> None:
    vm, bar = NotedVm(), Bar(1, 4096, 0)
    region = IoRegionFd(0x20, 4, fd, 7, posted_writes=True)
    doorbells = made(vm, bar, region)
    assert [each.mechanism for each in doorbells.routes()] == ["ioregionfd kernel"]
    doorbells.attach(at(bar, BASE))
    assert vm.regions == [IoRegion(BASE + 0x20, 4, 7, fd, fd, posted_writes=True)]
    doorbells.detach(at(bar, ELSEWHERE))
    assert vm.regions == []
    doorbells.attach(bar)
    assert vm.regions == [IoRegion(ELSEWHERE + 0x20, 4, 7, fd, fd, posted_writes=True)]
    doorbells.close()
    assert vm.regions == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_ioregion_of_ports_is_registered_as_ports(fd: int) -> None:
    vm, bar = NotedVm(), Bar(2, 16, 1)
    doorbells = made(vm, bar, IoRegionFd(4, 4, fd, 1, pio=True))
    doorbells.attach(at(bar, 0xC000))
    assert vm.regions == [IoRegion(0xC004, 4, 1, fd, fd, pio=True)]
    doorbells.close()


def test_an_ioregion_that_the_kernel_refuses_stays_with_messages_until_it_fits(fd: int) -> None:
    vm, bar = NotedVm(), Bar(1, 4096, 0)
    doorbells = made(vm, bar, IoRegionFd(0, 4, fd, 1))
    vm.full = True
    doorbells.attach(at(bar, BASE))
    ((*_, mechanism, reason),) = doorbells.routes()
    assert (mechanism, reason) == ("region_write", "KVM_SET_IOREGION(): No space left on device")
    vm.full = False
    doorbells.detach(bar)
    doorbells.attach(bar)
    assert [each.mechanism for each in doorbells.routes()] == ["ioregionfd kernel"]
    doorbells.close()


def test_the_real_vm_has_what_this_one_notes() -> None:
    assert all(hasattr(Vm, name) for name in ("has_ioregion", "set_ioregion", "ioregion_deassign"))
