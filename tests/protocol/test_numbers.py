"""The numbers on the wire, as the text of vfio-user, linux/vfio.h and linux/kvm.h have them."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pytest

from vfio_user import (
    accesses,
    constants,
    dma,
    dma_requests,
    errors,
    getters,
    io_fds,
    ioregionfd,
    journal,
    mapping,
    received_fds,
    regions,
    version,
)

NUMBERS: dict[type[IntEnum | IntFlag], list[int]] = {
    constants.Command: [*range(1, 14), 15, 16, 17, 18],
    constants.MessageFlags: [0x1, 0x10, 0x20],
    constants.RegionIndex: [*range(9)],
    constants.IrqIndex: [*range(5)],
    constants.DeviceFlags: [1, 2],
    constants.RegionFlags: [1, 2, 4, 8],
    constants.IrqFlags: [1, 2, 4, 8],
    constants.SetIrqsFlags: [1, 2, 4, 8, 16, 32],
    constants.DmaFlags: [1, 2, 4, 8],
    constants.UnmapFlags: [1, 2],
    constants.RegionCapability: [1, 2],
    constants.IoFdType: [0, 1, 2],
    constants.IoEventFdFlags: [1, 2, 8],
    constants.IoRegionFdFlags: [1, 2],
    constants.FeatureFlags: [1 << 16, 1 << 17, 1 << 18],
    constants.Feature: [1, 2, 6, 7, 8, 11],
    constants.MigrationFlags: [1, 2, 4],
    constants.DeviceState: [*range(8)],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_peers_know_a_thing_by_its_number(kind: type[IntEnum | IntFlag]) -> None:
    assert [int(member) for member in kind] == NUMBERS[kind]


def test_a_request_about_interrupts_has_one_of_three_kinds_of_data_and_one_of_three_actions() -> None:
    assert (int(constants.SetIrqsFlags.data_kinds()), int(constants.SetIrqsFlags.actions())) == (0b111, 0b111000)


def test_a_peer_that_names_no_capabilities_has_those_of_the_text() -> None:
    capabilities = version.Capabilities()
    assert (constants.DEFAULT_MAX_FDS, constants.DEFAULT_MAX_TRANSFER) == (1, 1 << 20)
    assert (constants.DEFAULT_MAX_DMA_MAPS, constants.DEFAULT_PGSIZES) == (65535, 4096)
    assert capabilities.max_msg_fds == 1
    assert (capabilities.write_multiple, capabilities.twin_socket, capabilities.io_fds) == (False, False, None)
    assert (version.MAJOR, version.MINOR) == (0, 2)


def test_flags_of_the_kernel_are_the_kernels() -> None:
    assert (io_fds.DATAMATCH, io_fds.PIO, io_fds.CCW) == (1, 2, 8)
    assert (io_fds.REGION_PIO, io_fds.POSTED_WRITES) == (1, 2)
    assert (ioregionfd.READ, ioregionfd.WRITE, ioregionfd.SIZE) == (0, 1, 32)
    assert errors.LARGEST_ERRNO == 4095
    assert received_fds.KERNEL_MAX_FDS == 253
    assert regions.SPARSE_MMAP == 1


def test_structures_have_the_sizes_of_the_text() -> None:
    assert (constants.HEADER_SIZE, constants.PCI_REGIONS, constants.PCI_IRQS) == (16, 9, 5)
    assert (io_fds.ENTRY, io_fds.ENTRY_48, io_fds.INFO.size) == (40, 48, 16)
    assert (dma.MAP.size, dma.UNMAP.size, regions.DEVICE.size, regions.REGION.size) == (32, 24, 16, 32)


def test_what_a_peer_may_make_us_keep_is_bounded() -> None:
    queued = (dma_requests.MOST_QUEUED, dma_requests.MOST_QUEUED_BYTES, dma_requests.MOST_QUEUED_FDS)
    assert queued == (1024, 16 << 20, 512)
    assert (accesses.MOST_KNOWN, dma_requests.LARGEST_READ) == (1024, 64 << 10)
    assert (mapping.MOST_PIECES, mapping.MOST_JOINED) == (256, 4096)
    assert (journal.SPARE, received_fds.MOST_FDS_HELD, getters.LARGEST_ANSWER) == (4096, 506, 1 << 20)
    assert (version.LARGEST_JSON, version.QEMU_REPLY, io_fds.MOST_ENTRIES) == (4096, 214, 4096)
