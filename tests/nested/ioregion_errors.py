"""What KVM_SET_IOREGION refuses, and that it does so with the right word. For a kernel that has it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvm_ioctls import IoctlError, IoRegion, Vm
from kvm_ioctls.ioctl import invoke
from kvm_ioctls.requests import SET_IOREGION
from nested.ioregion_device import Device
from realmode import HLT, MMIO, Guest

MOST = 1000  # regions of one VM
Boot = Callable[..., Guest]


@pytest.fixture
def vm(boot: Boot) -> Vm:
    vm = boot(HLT).vm
    assert vm.has_ioregion(), "this kernel has no KVM_SET_IOREGION"
    return vm


@pytest.fixture
def device() -> Iterator[Device]:
    with Device() as device:
        yield device


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(IoctlError) as caught:
        call(*arguments, **named)
    return errno.errorcode[caught.value.errno or 0]


def test_a_descriptor_that_is_none(vm: Vm, device: Device) -> None:
    good = device.region(MMIO, 8)
    assert refusal(vm.set_ioregion, replace(good, write_fd=-1)) == "EBADF"
    assert refusal(vm.set_ioregion, replace(good, read_fd=-1)) == "EBADF"
    assert refusal(vm.set_ioregion, replace(good, read_fd=-1, posted_writes=True)) == "EBADF"


def test_a_descriptor_that_is_no_socket(vm: Vm, device: Device) -> None:
    good = device.region(MMIO, 8)
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        assert refusal(vm.set_ioregion, replace(good, write_fd=event)) == "EINVAL"
        assert refusal(vm.set_ioregion, replace(good, read_fd=event)) == "EINVAL"
    finally:
        os.close(event)


def test_a_region_of_no_size_needs_no_socket_to_read_from(vm: Vm, device: Device) -> None:
    assert refusal(vm.set_ioregion, device.region(MMIO, 0)) == "EINVAL"  # but posted writes
    region = replace(device.region(MMIO, 0, posted=True), read_fd=-1)
    vm.set_ioregion(region)
    vm.ioregion_deassign(region)


def test_a_flag_that_is_not_known(vm: Vm, device: Device) -> None:
    struct = device.region(MMIO, 8).struct()
    struct.flags |= 1 << 3
    assert refusal(invoke, vm.fd, SET_IOREGION, struct) == "EINVAL"


def test_a_region_that_wraps_around(vm: Vm, device: Device) -> None:
    assert refusal(vm.set_ioregion, device.region((1 << 64) - 8, 16)) == "EINVAL"


@pytest.mark.parametrize(
    ("start", "size", "fits"),
    [
        (MMIO, 0x100, False),
        (MMIO + 0xFF, 1, False),  # its last byte
        (MMIO - 1, 2, False),  # its first
        (MMIO + 8, 8, False),
        (MMIO - 0x100, 0x1000, False),
        (MMIO + 0x100, 1, True),
        (MMIO - 1, 1, True),
    ],
)
def test_a_region_where_another_is(vm: Vm, device: Device, start: int, size: int, fits: bool) -> None:
    vm.set_ioregion(device.region(MMIO, 0x100))
    region = device.region(start, size)
    if fits:
        vm.set_ioregion(region)
    else:
        assert refusal(vm.set_ioregion, region) == "EEXIST"


def test_what_has_no_size_keeps_eight_bytes_free(vm: Vm, device: Device) -> None:
    vm.set_ioregion(device.region(MMIO, 0, posted=True))
    assert refusal(vm.set_ioregion, device.region(MMIO + 7, 1)) == "EEXIST"
    assert refusal(vm.set_ioregion, device.region(MMIO - 7, 0, posted=True)) == "EEXIST"
    vm.set_ioregion(device.region(MMIO + 8, 1))


@pytest.mark.parametrize(
    ("offset", "size", "fits"), [(0xFC, 4, False), (-4, 8, False), (-7, 0, False), (0x100, 4, True), (-4, 4, True)]
)
def test_an_ioeventfd_where_a_region_is(
    vm: Vm, device: Device, eventfd: Callable[[], int], offset: int, size: int, fits: bool
) -> None:
    fd, region = eventfd(), device.region(MMIO, 0x100)
    vm.set_ioregion(region)
    if fits:
        vm.ioeventfd(fd, MMIO + offset, size)
        return
    assert refusal(vm.ioeventfd, fd, MMIO + offset, size) == "EEXIST"
    vm.ioregion_deassign(region)
    vm.ioeventfd(fd, MMIO + offset, size)
    assert refusal(vm.set_ioregion, region) == "EEXIST"
    vm.ioeventfd_deassign(fd, MMIO + offset, size)
    vm.set_ioregion(region)


def test_ports_and_memory_do_not_meet(vm: Vm, device: Device, eventfd: Callable[[], int]) -> None:
    vm.set_ioregion(device.region(0x80, 8))
    vm.set_ioregion(device.region(0x80, 8, pio=True))
    vm.ioeventfd(eventfd(), 0x70, 4, pio=True)
    assert refusal(vm.set_ioregion, device.region(0x70, 4, pio=True)) == "EEXIST"


def test_more_regions_than_there_may_be(vm: Vm, device: Device) -> None:
    regions = [device.region(MMIO + 8 * number, 8) for number in range(MOST + 1)]
    for region in regions[:-1]:
        vm.set_ioregion(region)
    assert refusal(vm.set_ioregion, regions[-1]) == "ENOSPC"
    vm.ioregion_deassign(regions[0])
    vm.set_ioregion(regions[-1])


def test_a_region_that_is_not_there_cannot_go(vm: Vm, device: Device) -> None:
    region = device.region(MMIO, 0x100)
    assert refusal(vm.ioregion_deassign, region) == "ENOENT"
    vm.set_ioregion(region)
    for other in (
        device.region(MMIO, 0x80),
        device.region(MMIO + 8, 0xF8),
        device.region(MMIO, 0x100, pio=True),
    ):
        assert refusal(vm.ioregion_deassign, other) == "ENOENT"
    vm.ioregion_deassign(IoRegion(MMIO, 0x100, 99, read_fd=-1, write_fd=-1))  # the rest does not count
    assert refusal(vm.ioregion_deassign, region) == "ENOENT"


def test_the_kernel_lets_go_of_a_socket_with_its_last_region(vm: Vm, device: Device) -> None:
    regions = device.region(MMIO, 8), device.region(MMIO + 8, 8)
    for region in regions:
        vm.set_ioregion(region)
    device.kernels.close()
    vm.ioregion_deassign(regions[0])
    assert device.idle()
    vm.ioregion_deassign(regions[1])
    assert device.ours.recv(1) == b""
