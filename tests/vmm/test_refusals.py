"""Devices that describe themselves in ways that no guest can be shown: refused at once, and nothing kept."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.registrations import Registrations
from bellwire_vmm.errors import AddressConflictError, DeviceRefusedError, VmmError
from bellwire_vmm.vmm import Machine
from vfio_user import (
    Client,
    DeviceFlags,
    IoEventFd,
    IoRegionFd,
    MmapArea,
    ProtocolError,
    Region,
    RegionFlags,
    RegionInfo,
    ShadowIoEventFd,
    SubRegion,
    VfioUserError,
)
from vfio_user.io_fds import descriptors
from vmm.toy import MSI_AT, MSIX_AT, Toy

pytestmark = pytest.mark.kvm

Serve = Callable[[Toy], Client]
READ_WRITE = RegionFlags.READ | RegionFlags.WRITE


class Odd(Toy):
    """A toy whose regions or sub-regions are replaced."""

    def __init__(self, *, regions: dict[int, RegionInfo] | None = None, subs: Sequence[SubRegion] = ()) -> None:
        super().__init__(mapped=True)
        self.odd_regions = regions or {}
        self.odd_subs = subs

    def region(self, index: int) -> Region:
        if index in self.odd_regions:
            info = self.odd_regions[index]
            return Region(info, self.area if info.flags & RegionFlags.MMAP else None)
        return super().region(index)

    def sub_regions(self, index: int, mechanisms: frozenset[str]) -> Sequence[SubRegion]:
        return self.odd_subs if index == 1 else ()


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def refused(machine: Machine, serve: Serve, device: Toy, why: str, error: type[Exception] = DeviceRefusedError) -> None:
    client = serve(device)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=why):
        machine.plug(client)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0
    assert machine.devices == []
    assert machine.bus.free_slot() == 1


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (4095, "BAR1 has 0xfff bytes: expected a power of two from 16 on"),
        (8, "BAR1 has 0x8 bytes: expected a power of two from 16 on"),
        (1 << 32, "BAR1 has 0x100000000 bytes: no guest of ours has so many addresses"),
        (1 << 63, "no guest of ours"),
    ],
)
def test_a_bar_of_a_size_that_no_bar_has(machine: Machine, serve: Serve, size: int, why: str) -> None:
    refused(machine, serve, Odd(regions={1: RegionInfo(1, READ_WRITE, size)}), why)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (3072, "BAR6 has 0xc00 bytes: expected a power of two"),
        (1024, "the expansion ROM has 0x400 bytes: expected 2 KiB to 16 MiB"),
        (32 << 20, "the expansion ROM has 0x2000000 bytes"),
        (1 << 63, "no guest of ours"),
    ],
)
def test_an_expansion_rom_of_a_size_that_no_rom_has(machine: Machine, serve: Serve, size: int, why: str) -> None:
    refused(machine, serve, Odd(regions={6: RegionInfo(6, RegionFlags.READ, size)}), why)


def test_an_expansion_rom_needs_the_right_to_read_and_no_descriptor(machine: Machine, serve: Serve) -> None:
    mapped = RegionInfo(6, READ_WRITE | RegionFlags.MMAP, 4096)
    device = machine.plug(serve(Odd(regions={6: mapped})))
    assert device.config_read(0x30, 4) != bytes(4)
    hidden = machine.plug(serve(Odd(regions={6: RegionInfo(6, RegionFlags(0), 4096)})))
    assert hidden.config_read(0x30, 4) == bytes(4)


def test_a_bar_for_which_there_is_no_room(machine: Machine, serve: Serve) -> None:
    device = Odd(regions={1: RegionInfo(1, READ_WRITE, 1 << 31)})
    refused(machine, serve, device, "no room for a BAR of 0x80000000 bytes", AddressConflictError)


def test_a_wide_bar_without_an_upper_half(machine: Machine, serve: Serve) -> None:
    device = Odd(regions={5: RegionInfo(5, READ_WRITE, 4096), 4: RegionInfo(4, READ_WRITE, 0)})
    device.preset(0x24, b"\4")
    refused(machine, serve, device, "BAR5 is 64 bits wide: there is no register for its upper half")


@pytest.mark.parametrize(
    ("areas", "offset", "why"),
    [
        ((MmapArea(100, 4096),), 0, "expected whole pages"),
        ((MmapArea(4096, 100),), 0, "expected whole pages"),
        ((MmapArea(4096, 4096),), 12, "expected whole pages"),
        ((MmapArea(4096, 4096),), 1 << 40, "reaches beyond the end of its file"),
        ((MmapArea(0, 8192), MmapArea(4096, 4096)), 0, "reaches beyond 0x1000"),
    ],
)
def test_an_mmap_area_that_cannot_be_mapped(
    machine: Machine, serve: Serve, areas: tuple[MmapArea, ...], offset: int, why: str
) -> None:
    info = RegionInfo(3, READ_WRITE | RegionFlags.MMAP, 8192, offset, areas)
    refused(machine, serve, Odd(regions={3: info}), why)


def test_an_mmap_area_outside_its_region(machine: Machine, serve: Serve) -> None:
    info = RegionInfo(3, READ_WRITE | RegionFlags.MMAP, 8192, 0, (MmapArea(8192, 4096),))
    refused(machine, serve, Odd(regions={3: info}), "outside the region", ProtocolError)


@pytest.mark.parametrize(
    ("table", "pending", "why"),
    [
        (4 | 0x1FF8, 4 | 0x1000, "the MSI-X table of the device at BAR4.0x1ff8 lies in no memory BAR"),
        (4, 4 | 0x2000, "the MSI-X pending bits of the device at BAR4.0x2000 lies? in no memory BAR"),
        (2, 4 | 0x1000, "the MSI-X table of the device at BAR2.0x0 lies in no memory BAR"),
        (5, 4 | 0x1000, "the MSI-X table of the device at BAR5.0x0 lies in no memory BAR"),
        (7, 4 | 0x1000, "the MSI-X table of the device at BAR7.0x0 lies in no memory BAR"),
    ],
)
def test_an_msix_table_outside_its_bar(machine: Machine, serve: Serve, table: int, pending: int, why: str) -> None:
    device = Toy()
    device.preset(MSIX_AT + 4, struct.pack("<II", table, pending))
    refused(machine, serve, device, why)


def test_a_sub_region_outside_its_region(machine: Machine, serve: Serve) -> None:
    with closing(os.eventfd(0)) as fd:
        refused(machine, serve, Odd(subs=[IoEventFd(4094, 4, fd)]), "lies outside the region", ProtocolError)


def test_a_sub_region_in_the_other_address_space(machine: Machine, serve: Serve) -> None:
    with closing(os.eventfd(0)) as fd:
        why = "the sub-region at BAR1.0x10 says I/O ports, but its BAR is memory"
        refused(machine, serve, Odd(subs=[IoEventFd(0, 4, fd), IoEventFd(16, 4, fd, pio=True)]), why)


def test_an_ioregionfd_that_is_no_socket(relaying: None, machine: Machine, serve: Serve) -> None:
    with closing(os.eventfd(0)) as fd:
        refused(machine, serve, Odd(subs=[IoRegionFd(0, 4, fd, 1)]), "the descriptor is no socket", VfioUserError)


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (lambda fd: IoEventFd(0, 4, fd, ccw=True), "CCW doorbells exist on s390 only"),
        (lambda fd: IoEventFd(0, 2, fd, datamatch=0x1_0000), "datamatch does not fit in 2 bytes"),
    ],
)
def test_a_doorbell_that_kvm_cannot_have_stays_with_messages(
    machine: Machine, serve: Serve, region: Callable[[int], SubRegion], reason: str
) -> None:
    with closing(os.eventfd(0)) as fd:
        device = machine.plug(serve(Odd(subs=[region(fd)])), share_memory=True)
        (route,) = device.routes()
        assert route.mechanism == "region_write"
        assert reason in route.reason


def cell_file(size: int = 4096, flags: int = os.MFD_ALLOW_SEALING) -> int:
    """A memfd for the values of shadow doorbells."""
    fd = os.memfd_create("shadow", flags)
    os.ftruncate(fd, size)
    return fd


SHADOWS = {
    "of any width": (lambda fd, memory: ShadowIoEventFd(0, 0, fd, memory, 0), "no room for a value"),
    "not aligned": (lambda fd, memory: ShadowIoEventFd(0, 4, fd, memory, 2), "0x2 is no multiple of 4"),
    "beyond the file": (lambda fd, memory: ShadowIoEventFd(0, 4, fd, memory, 4096), "the file has 4096 bytes"),
    "far beyond it": (lambda fd, memory: ShadowIoEventFd(0, 4, fd, memory, 1 << 63), "the file has 4096 bytes"),
    "no eventfd": (lambda fd, memory: ShadowIoEventFd(0, 4, memory, memory, 0), "is no eventfd"),
    "no memory": (lambda fd, memory: ShadowIoEventFd(0, 4, fd, fd, 0), "mmap of"),
}


@pytest.mark.parametrize(("region", "reason"), SHADOWS.values(), ids=SHADOWS.keys())
def test_a_shadow_doorbell_that_cannot_be_used_stays_with_messages_and_its_descriptors_are_closed(
    machine: Machine, region: Callable[[int, int], SubRegion], reason: str
) -> None:
    bell, memory = os.eventfd(0), cell_file()
    sub = region(bell, memory)
    doorbells = Registrations(machine.vm, [(Bar(1, 4096, 0), [sub])])
    (route,) = doorbells.routes()
    assert route.mechanism == "region_write"
    assert reason in route.reason
    doorbells.close()
    for fd in descriptors(sub):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for fd in {bell, memory} - descriptors(sub):
        os.close(fd)


@pytest.mark.parametrize(
    ("datamatch", "flags", "reason"),
    [
        (None, 0, "not sealed against shrinking"),
        (7, os.MFD_ALLOW_SEALING, "needs a patched kernel"),
    ],
)
def test_what_only_a_kernel_could_ring_stays_with_messages(
    unposting: None, machine: Machine, datamatch: int | None, flags: int, reason: str
) -> None:
    sub = ShadowIoEventFd(0, 4, os.eventfd(0), cell_file(flags=flags), 0, datamatch)
    with contextlib.closing(Registrations(machine.vm, [(Bar(1, 4096, 0), [sub])])) as doorbells:
        (route,) = doorbells.routes()
        assert route.mechanism == "region_write"
        assert reason in route.reason


def test_shadow_memory_that_may_be_sealed_is_sealed_and_relayed(unposting: None, machine: Machine) -> None:
    memory = cell_file()
    sub = ShadowIoEventFd(0, 4, os.eventfd(0), memory, 0)
    with contextlib.closing(Registrations(machine.vm, [(Bar(1, 4096, 0), [sub])])) as doorbells:
        assert [each.mechanism for each in doorbells.routes()] == ["shadow relay"]
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)


def test_a_doorbell_that_is_no_eventfd_stays_with_messages(machine: Machine, serve: Serve) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        (route,) = machine.plug(serve(Odd(subs=[IoEventFd(0, 4, ours.fileno())]))).routes()
    assert route.mechanism == "region_write"
    assert "KVM_IOEVENTFD" in route.reason


def test_of_two_doorbells_for_one_write_the_first_is_registered(machine: Machine, serve: Serve) -> None:
    with closing(os.eventfd(0)) as fd:
        device = machine.plug(serve(Odd(subs=[IoEventFd(0, 4, fd), IoEventFd(0, 4, fd)])))
        assert [each.mechanism for each in device.routes()] == ["ioeventfd", "region_write"]


def test_a_device_that_is_not_pci(machine: Machine, serve: Serve) -> None:
    device = Toy()
    device.device_flags = DeviceFlags.RESET
    refused(machine, serve, device, "not a PCI device")


def test_capabilities_in_a_circle_come_to_an_end(machine: Machine, serve: Serve) -> None:
    device = Toy()
    device.preset(MSI_AT + 1, bytes([MSI_AT]))
    machine.plug(serve(device))


def test_a_33rd_device_is_refused_and_its_connection_closed(machine: Machine, serve: Serve) -> None:
    while machine.bus._functions.keys() != set(range(32)):
        machine.bus.insert(machine.bus.free_slot(), machine.bus._functions[0])
    client = serve(Toy())
    with pytest.raises(AddressConflictError, match="all 32 slots of the PCI bus are taken"):
        machine.plug(client)
    assert client.fileno() < 0


def test_refusals_are_errors_of_the_vmm() -> None:
    assert issubclass(DeviceRefusedError, VmmError)
    assert issubclass(AddressConflictError, VmmError)
