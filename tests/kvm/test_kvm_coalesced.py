"""Coalesced writes on real KVM: which stores stay in the guest, and when they come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvm_ioctls import (
    Capability,
    CoalescedRing,
    CoalescedWrite,
    Hlt,
    InvalidArgumentError,
    IoOut,
    MmioRead,
    MmioWrite,
)
from realmode import HLT, MMIO, SPIN, Guest, load, out, store

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]
ZONE = 0x10
FULL = (CoalescedRing.ROOM, CoalescedRing.EARLY)


def ring_of(guest: Guest) -> CoalescedRing:
    return guest.vcpu.coalesced_ring(guest.vm.check_extension(Capability.COALESCED_MMIO))


def drained(ring: CoalescedRing) -> list[CoalescedWrite]:
    taken: list[CoalescedWrite] = []
    ring.drain(taken.extend)
    return taken


def values(writes: list[CoalescedWrite]) -> list[int]:
    return [int.from_bytes(write.data, "little") for write in writes]


def test_writes_to_a_zone_wait_in_the_ring_with_no_exit(boot: Boot) -> None:
    guest = boot(store(ZONE, 7, 1) + store(ZONE + 2, 8, 2) + store(ZONE + 4, 9, 4) + HLT)
    ring = ring_of(guest)
    guest.vm.register_coalesced_mmio(MMIO + ZONE, 8)
    with guest.vcpu.stats() as stats:
        assert guest.run() == Hlt()
        assert stats["mmio_exits"] == 0
    assert not ring.empty
    assert drained(ring) == [
        CoalescedWrite(MMIO + ZONE, b"\7", False),
        CoalescedWrite(MMIO + ZONE + 2, b"\10\0", False),
        CoalescedWrite(MMIO + ZONE + 4, b"\11\0\0\0", False),
    ]
    assert ring.empty


def test_reads_of_a_zone_and_writes_across_its_ends_exit(boot: Boot) -> None:
    guest = boot(load(ZONE) + store(ZONE - 2, 1, 4) + store(ZONE + 6, 2, 4) + HLT)
    ring = ring_of(guest)
    guest.vm.register_coalesced_mmio(MMIO + ZONE, 8)
    read = guest.run()
    assert isinstance(read, MmioRead)
    read.reply(bytes(4))
    assert guest.run() == MmioWrite(MMIO + ZONE - 2, b"\1\0\0\0")
    assert guest.run() == MmioWrite(MMIO + ZONE + 6, b"\2\0\0\0")
    assert ring.empty


def test_a_full_ring_makes_a_write_exit_behind_all_that_it_holds(boot: Boot) -> None:
    stores = CoalescedRing.ROOM + 2
    guest = boot(b"".join(store(ZONE, value) for value in range(stores)) + HLT)
    ring = ring_of(guest)
    guest.vm.register_coalesced_mmio(MMIO + ZONE, 4)
    exit_ = guest.run()
    held = values(drained(ring))
    assert len(held) in FULL
    assert exit_ == MmioWrite(MMIO + ZONE, len(held).to_bytes(4, "little"))
    assert guest.run() == Hlt()
    assert [*held, len(held), *values(drained(ring))] == list(range(stores))


def test_a_zone_taken_away_lets_writes_exit_and_leaves_what_it_had(boot: Boot) -> None:
    guest = boot(store(ZONE, 1) + out(0xF4, 0) + store(ZONE, 2) + HLT)
    ring = ring_of(guest)
    guest.vm.register_coalesced_mmio(MMIO + ZONE, 4)
    assert guest.run() == IoOut(0xF4, 1, 1, b"\0")
    guest.vm.unregister_coalesced_mmio(MMIO + ZONE, 4)
    assert guest.run() == MmioWrite(MMIO + ZONE, b"\2\0\0\0")
    assert drained(ring) == [CoalescedWrite(MMIO + ZONE, b"\1\0\0\0", False)]


def test_taking_away_what_is_not_there_is_no_error(boot: Boot) -> None:
    boot(HLT).vm.unregister_coalesced_mmio(MMIO, 4)


def test_a_port_may_be_a_zone_too(boot: Boot) -> None:
    guest = boot(out(0xE4, 9, 4) + out(0xF4, 1) + HLT)
    if not guest.vm.check_extension(Capability.COALESCED_PIO):
        pytest.skip("this kernel coalesces no writes to I/O ports")
    ring = ring_of(guest)
    guest.vm.register_coalesced_mmio(0xE4, 4, pio=True)
    assert guest.run() == IoOut(0xF4, 1, 1, b"\1")
    assert drained(ring) == [CoalescedWrite(0xE4, b"\11\0\0\0", True)]


def test_all_vcpus_share_one_ring(boot: Boot) -> None:
    guest = boot(store(ZONE, 1) + HLT)
    with guest.vm.create_vcpu(1) as other:
        theirs = other.coalesced_ring(guest.vm.check_extension(Capability.COALESCED_MMIO))
        guest.vm.register_coalesced_mmio(MMIO + ZONE, 4)
        assert guest.run() == Hlt()
        assert drained(theirs) == [CoalescedWrite(MMIO + ZONE, b"\1\0\0\0", False)]
        assert ring_of(guest).empty


@pytest.mark.parametrize("size", [0, -1, 1 << 32])
def test_a_size_that_the_request_cannot_hold_is_refused(boot: Boot, size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"KVM_REGISTER_COALESCED_MMIO\(addr=0xd0000000, size="):
        boot(HLT).vm.register_coalesced_mmio(MMIO, size)


@pytest.mark.parametrize("page", [0, -1, 3, 1 << 20])
def test_a_ring_lies_within_the_mapping(boot: Boot, page: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"page {page} is no ring of coalesced writes"):
        boot(SPIN).vcpu.coalesced_ring(page)
