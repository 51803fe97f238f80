from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypedDict

import pytest

from kvm_ioctls import ConflictError, Hlt, InvalidArgumentError, IoctlError, IoOut, MmioWrite, NotFoundError
from realmode import HLT, MMIO, Guest, out, store

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]
Make = Callable[[], int]


class Heard(TypedDict, total=False):
    """Which writes to its address a doorbell hears."""

    size: int
    datamatch: int


def rung(fd: int) -> int:
    """How often it rang since it was last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_doorbell_of_length_0_hears_a_write_of_any_size_without_an_exit(boot: Boot, eventfd: Make, size: int) -> None:
    guest, bell = boot(store(0x10, 7, size) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10)
    assert guest.run() == Hlt()
    assert rung(bell) == 1


def test_a_doorbell_with_a_length_hears_that_size_only(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x10, 1, 2) + store(0x10, 2, 4) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\1\0")
    assert guest.run() == Hlt()
    assert rung(bell) == 1


def test_a_doorbell_hears_its_own_address_only(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x14, 1) + store(0x10, 2) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4)
    assert guest.run() == MmioWrite(MMIO + 0x14, b"\1\0\0\0")
    assert guest.run() == Hlt()
    assert rung(bell) == 1


def test_a_match_lets_other_values_through_as_exits(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x10, 0x41) + store(0x10, 0x42) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, datamatch=0x42)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\x41\0\0\0")
    assert guest.run() == Hlt()
    assert rung(bell) == 1


def test_a_match_on_zero_is_no_wildcard(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x10, 1) + store(0x10, 0) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4, datamatch=0)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\1\0\0\0")
    assert guest.run() == Hlt()
    assert rung(bell) == 1


def test_several_matches_share_an_address(boot: Boot, eventfd: Make) -> None:
    guest = boot(store(0x10, 1) + store(0x10, 2) + store(0x10, 2) + HLT)
    one, two = eventfd(), eventfd()
    guest.vm.ioeventfd(one, MMIO + 0x10, 4, datamatch=1)
    guest.vm.ioeventfd(two, MMIO + 0x10, 4, datamatch=2)
    assert guest.run() == Hlt()
    assert (rung(one), rung(two)) == (1, 2)


def test_a_port_is_a_doorbell_too(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(out(0xE4, 9, 4) + out(0xF4, 1) + HLT), eventfd()
    guest.vm.ioeventfd(bell, 0xE4, 4, pio=True)
    assert guest.run() == IoOut(0xF4, 1, 1, b"\1")
    assert rung(bell) == 1


def test_rings_add_up(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x10, 1) * 50 + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10)
    assert guest.run() == Hlt()
    assert rung(bell) == 50


@pytest.mark.parametrize(
    "doorbell",
    [
        {},
        {"size": 4},
        {"size": 4, "datamatch": 1},
    ],
)
def test_a_doorbell_taken_away_is_deaf(boot: Boot, eventfd: Make, doorbell: Heard) -> None:
    guest, bell = boot(store(0x10, 1) + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, **doorbell)
    guest.vm.ioeventfd_deassign(bell, MMIO + 0x10, **doorbell)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\1\0\0\0")
    assert rung(bell) == 0


def test_a_port_doorbell_taken_away_is_deaf(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(out(0xF4, 1) + HLT), eventfd()
    guest.vm.ioeventfd(bell, 0xF4, pio=True)
    guest.vm.ioeventfd_deassign(bell, 0xF4, pio=True)
    assert guest.run() == IoOut(0xF4, 1, 1, b"\1")
    assert rung(bell) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"size": 0}, {"size": 0}),
        ({"size": 0}, {"size": 4}),
        ({"size": 4}, {"size": 0}),
        ({"size": 4}, {"size": 4}),
        ({"size": 4}, {"size": 4, "datamatch": 1}),
        ({"size": 4, "datamatch": 1}, {"size": 4, "datamatch": 1}),
    ],
)
def test_two_doorbells_that_would_hear_the_same_write_conflict(
    boot: Boot, eventfd: Make, first: Heard, second: Heard
) -> None:
    guest = boot(HLT)
    guest.vm.ioeventfd(eventfd(), MMIO, **first)
    with pytest.raises(ConflictError) as caught:
        guest.vm.ioeventfd(eventfd(), MMIO, **second)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.ioctl == "KVM_IOEVENTFD"
    assert caught.value.arguments["addr"] == MMIO


@pytest.mark.parametrize(
    ("first", "second"),
    [({"size": 4}, {"size": 2}), ({"size": 4, "datamatch": 1}, {"size": 4, "datamatch": 2})],
)
def test_two_doorbells_that_hear_different_writes_do_not_conflict(
    boot: Boot, eventfd: Make, first: Heard, second: Heard
) -> None:
    guest = boot(HLT)
    guest.vm.ioeventfd(eventfd(), MMIO, **first)
    guest.vm.ioeventfd(eventfd(), MMIO, **second)


def test_taking_away_what_is_not_there_is_not_found(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO, 4)
    with pytest.raises(NotFoundError, match="KVM_IOEVENTFD"):
        guest.vm.ioeventfd_deassign(bell, MMIO, 2)


def test_a_match_needs_a_length(boot: Boot, eventfd: Make) -> None:
    guest = boot(HLT)
    with pytest.raises(IoctlError) as caught:
        guest.vm.ioeventfd(eventfd(), MMIO, 0, datamatch=1)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.arguments["datamatch"] == 1


@pytest.mark.parametrize("value", [1 << 32, -1])
def test_a_match_that_no_write_could_have_is_refused(boot: Boot, eventfd: Make, value: int) -> None:
    guest = boot(HLT)
    with pytest.raises(InvalidArgumentError, match="does not fit in 4 bytes"):
        guest.vm.ioeventfd(eventfd(), MMIO, 4, datamatch=value)


def test_a_size_no_write_has_is_refused(boot: Boot, eventfd: Make) -> None:
    guest = boot(HLT)
    with pytest.raises(IoctlError, match=r"KVM_IOEVENTFD\(addr=0xd0000000, len=3"):
        guest.vm.ioeventfd(eventfd(), MMIO, 3)


def test_a_ccw_doorbell_is_refused_before_kvm_can_accept_it(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0, 1) + HLT), eventfd()
    with pytest.raises(InvalidArgumentError, match="s390"):
        guest.vm.ioeventfd(bell, MMIO, 4, ccw=True)
    assert isinstance(guest.run(), MmioWrite)


def test_a_file_that_is_no_eventfd_is_refused(boot: Boot) -> None:
    guest = boot(HLT)
    reader, writer = os.pipe()
    try:
        with pytest.raises(IoctlError) as caught:
            guest.vm.ioeventfd(writer, MMIO, 4)
    finally:
        os.close(reader)
        os.close(writer)
    assert caught.value.errno == errno.EINVAL


def test_rings_are_no_exits_in_the_kernels_own_count(boot: Boot, eventfd: Make) -> None:
    guest, bell = boot(store(0x10, 1) * 20 + store(0x14, 1) * 3 + HLT), eventfd()
    guest.vm.ioeventfd(bell, MMIO + 0x10, 4)
    with guest.vcpu.stats() as stats:
        before = stats.read()["mmio_exits"]
        assert len(guest.mmio_writes()) == 3
        assert stats["mmio_exits"] - before == 3
    assert rung(bell) == 20
