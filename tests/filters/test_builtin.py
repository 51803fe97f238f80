"""The simple filters that come with Bellwire: count and delay."""

from __future__ import annotations

import pytest

from bellwire.filters.builtin.count import OTHERS, Count
from bellwire.filters.builtin.delay import Delay
from bellwire.testing.guest import Guest
from filters.copier import Copier
from vfio_user import IrqIndex


def test_count_counts_by_name() -> None:
    with Guest(Copier, filters=[count := Count(dma=True)]) as guest:
        count.counts.clear()
        guest.read(Copier.status)
        guest.write(Copier.source, 0x100)
        guest.ring(Copier.go)
        guest.ring(Copier.go)
        assert count.report() == {
            "bytes read by DMA": 32,
            "bytes written by DMA": 32,
            "ring go by message": 2,
            "MSIX 0 sent": 2,
            "read status": 1,
            "write source": 1,
        }


def test_count_leaves_dma_alone_unless_it_is_asked() -> None:
    with Guest(Copier, filters=[Count()]) as guest:
        assert not guest.device.dma.copied


def test_a_guest_cannot_make_count_remember_names_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwire.filters.builtin.count.MOST_NAMES", 4)
    with Guest(Copier, filters=[count := Count()]) as guest:
        for offset in range(0x100, 0x140):
            guest.read(0, offset, 1)
            guest.write(0, 0, offset=offset, size=1)
        for register in (Copier.status, Copier.source, Copier.low, Copier.high):
            guest.read(register)
        assert len(count.counts) <= 5
        assert count.counts[OTHERS] > 0


def test_delay_is_only_in_the_paths_that_it_delays() -> None:
    with Guest(Copier, filters=[Delay(interrupt="2ms")]) as guest:
        assert not guest.device.dma.copied
        guest.ring(Copier.go)
        assert not guest.interrupts
        guest.advance(0.002)
        assert guest.interrupts == {(IrqIndex.MSIX, 0): 1}


def test_delay_lets_what_the_device_writes_arrive_late() -> None:
    with Guest(Copier, filters=[Delay(dma_write="1ms")]) as guest:
        guest.memory[0x100:0x110] = b"x" * 16
        guest.write(Copier.source, 0x100)
        guest.ring(Copier.go)
        assert guest.interrupts == {(IrqIndex.MSIX, 0): 1}
        assert bytes(guest.memory[0x120:0x130]) == bytes(16)
        guest.advance(0.001)
        assert bytes(guest.memory[0x120:0x130]) == b"x" * 16
