"""Zones whose writes cannot wait: refused when their device is plugged in, and nothing kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest

from bellwire_vmm.errors import ZoneRefusedError
from bellwire_vmm.vmm import Machine
from kvm_ioctls import Vm
from vfio_user import Capabilities, Client
from vmm import toy
from vmm.toy import Toy, served

pytestmark = pytest.mark.kvm

Serve = Callable[[Toy], Client]

MIB = 1 << 20
PLAIN = (0, toy.PLAIN, 4)


def refused(machine: Machine, client: Client, zones: Sequence[tuple[int, int, int]], why: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ZoneRefusedError, match=why):
        machine.plug(client, coalesced=zones)
    assert not set(os.listdir("/proc/self/fd")) - before
    assert machine.devices == []
    assert machine.bus.free_slot() == 1


@pytest.mark.parametrize(
    ("zone", "why"),
    [
        ((5, 0, 4), "BAR5.0x0, 0x4 bytes: the device has no such memory BAR"),
        ((-1, 0, 4), "no such memory BAR"),
        ((2, 4, 4), "no such memory BAR"),
        ((0, 4093, 4), "expected bytes of a BAR of 0x1000"),
        ((0, 0, 0), "expected bytes of a BAR of 0x1000"),
        ((0, -4, 4), "expected bytes of a BAR of 0x1000"),
        ((0, 0, -1), "expected bytes of a BAR of 0x1000"),
        ((0, 0, 1 << 33), "expected bytes of a BAR of 0x1000"),
        ((1, 0, 1), "overlaps the sub-region at 0x0"),
        ((1, 0x08, 0x9), "overlaps the sub-region at 0x10"),
        ((1, 0x23, 1), "overlaps the sub-region at 0x20"),
        ((1, 0x1FF, 8), "overlaps the sub-region at 0x100"),
        ((4, 0x70, 0x20), "overlaps the MSI-X table or its pending bits"),
        ((4, 4096, 1), "overlaps the MSI-X table or its pending bits"),
    ],
)
def test_a_zone_whose_writes_cannot_wait_is_refused(
    machine: Machine, serve: Serve, zone: tuple[int, int, int], why: str
) -> None:
    device = Toy("wildcard", "datamatch", "value", "acked", "pio")
    for index in range(3):
        device.sub_regions(index, frozenset())  # opens the descriptors that it keeps itself
    refused(machine, serve(device), [zone], why)


def test_zones_that_overlap_are_refused(machine: Machine, serve: Serve) -> None:
    refused(
        machine, serve(Toy()), [(0, 0, 8), (1, 4, 8), (0, 7, 1)], "BAR0.0x7, 0x1 bytes: it overlaps the zone BAR0.0x0"
    )


def test_zones_beside_mapped_memory_are_refused(machine: Machine, serve: Serve) -> None:
    refused(machine, serve(Toy(mapped=True)), [PLAIN], "a direct store would overtake")


def test_a_server_that_takes_one_write_at_a_time_is_refused(machine: Machine) -> None:
    with served(Toy()) as sock:
        proposal = Capabilities.of(max_msg_fds=253, max_data_xfer_size=1 << 20, write_multiple=False)
        refused(machine, Client(sock, proposal=proposal), [PLAIN], "has not agreed to write_multiple")


def test_a_kernel_without_the_ring_is_refused_only_when_a_zone_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Vm, "check_extension", lambda vm, cap: 0)
    with served(Toy()) as sock, served(Toy()) as other, Machine(16 * MIB) as machine:
        refused(machine, Client(sock), [PLAIN], "KVM_CAP_COALESCED_MMIO")
        machine.plug(Client(other))
