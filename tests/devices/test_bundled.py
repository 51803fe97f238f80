"""The bundled devices: edu as QEMU's documentation has it, and bell."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from bellwire import GuestError
from bellwire.bundled.bell import MATCH, Bell
from bellwire.bundled.edu import DMA_START, Edu, Status
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance
from vfio_user import IrqIndex

TestEdu = conformance(Edu)
TestBell = conformance(Bell)


@pytest.fixture
def edu() -> Iterator[Guest[Edu]]:
    with Guest(Edu) as guest:
        yield guest


@pytest.fixture
def bell() -> Iterator[Guest[Bell]]:
    with Guest(Bell) as guest:
        yield guest


def test_edu_identifies_itself(edu: Guest[Edu]) -> None:
    assert edu.read(Edu.ident) == 0x0100_00ED
    assert edu.config_read(0, 4) == 0x11E8_1234


def test_edu_inverts_the_liveness_register(edu: Guest[Edu]) -> None:
    edu.write(Edu.liveness, 0x1234_5678)
    assert edu.read(Edu.liveness) == 0xEDCB_A987


@pytest.mark.parametrize("number", [0, 1, 5, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_edu_computes_factorials(edu: Guest[Edu], number: int) -> None:
    edu.write(Edu.factorial, number)
    assert edu.read(Edu.status) & Status.COMPUTING
    edu.advance()
    assert not edu.read(Edu.status) & Status.COMPUTING
    assert edu.read(Edu.factorial) == (math.factorial(number) & 0xFFFF_FFFF if number < 100 else 0)


def test_edu_ignores_a_number_while_it_computes(edu: Guest[Edu]) -> None:
    edu.write(Edu.factorial, 4)
    edu.write(Edu.factorial, 5)
    edu.advance()
    assert edu.read(Edu.factorial) == 24


def test_edu_interrupts_by_msi_when_done(edu: Guest[Edu]) -> None:
    edu.write(Edu.status, Status.IRQ_WHEN_DONE)
    edu.write(Edu.factorial, 4)
    edu.advance()
    assert edu.interrupts == {(IrqIndex.MSI, 0): 1}
    assert edu.read(Edu.irq_status) == 1


def test_edu_interrupts_by_the_line_until_acknowledged(edu: Guest[Edu]) -> None:
    edu.config_write(edu.device.core.config.at[pci.MSI] + 2, 0, 2)
    edu.write(Edu.irq_raise, 0x12)
    edu.write(Edu.irq_acknowledge, 0x02)
    assert edu.line
    edu.write(Edu.irq_acknowledge, 0x10)
    assert not edu.line
    assert edu.read(Edu.irq_status) == 0


def test_edu_copies_from_guest_memory_and_back(edu: Guest[Edu]) -> None:
    assert edu.memory is not None
    edu.memory[0x1000:0x1064] = bytes(range(100))
    for source, destination, command in ((0x1000, DMA_START + 8, 1), (DMA_START + 8, 0x2000, 1 | 2 | 4)):
        edu.write(Edu.dma_source, source)
        edu.write(Edu.dma_destination, destination)
        edu.write(Edu.dma_count, 100)
        edu.write(Edu.dma_command, command)
        assert edu.read(Edu.dma_command) & 1
        edu.advance(0.2)
        assert not edu.read(Edu.dma_command) & 1
    assert bytes(edu.memory[0x2000:0x2064]) == bytes(range(100))
    assert edu.read(Edu.irq_status) == 0x100


def test_edu_ignores_writes_to_its_dma_registers_while_it_copies(edu: Guest[Edu]) -> None:
    edu.write(Edu.dma_source, 0x1000)
    edu.write(Edu.dma_destination, DMA_START)
    edu.write(Edu.dma_count, 4)
    edu.write(Edu.dma_command, 1)
    edu.write(Edu.dma_count, 9)
    edu.write(Edu.dma_command, 7)
    assert edu.read(Edu.dma_count) == 4
    assert edu.read(Edu.dma_command) == 1


def test_edu_refuses_a_copy_beyond_its_buffer(edu: Guest[Edu]) -> None:
    edu.write(Edu.dma_destination, DMA_START + 4000)
    edu.write(Edu.dma_count, 97)
    edu.write(Edu.dma_command, 1)
    with pytest.raises(GuestError, match="the buffer is 4096 bytes"):
        edu.advance(1)
    assert not edu.read(Edu.dma_command) & 1


def test_edu_reads_all_ones_where_there_is_nothing(edu: Guest[Edu]) -> None:
    assert edu.read(Edu.irq_raise) == 0xFFFF_FFFF
    assert edu.read(0, 0xA0, 4) == 0xFFFF_FFFF


def test_bell_counts_each_way_of_ringing(bell: Guest[Bell]) -> None:
    bell.write(Bell.wildcard, 5)
    bell.write(Bell.datamatch, MATCH)
    bell.write(Bell.datamatch, MATCH + 1)
    bell.write(Bell.pio, 1)
    bell.write(Bell.value, 1)
    bell.write(Bell.value, 3)
    bell.write(Bell.region, 1, size=4)
    bell.write(Bell.plain, 1)
    bell.write(Bell.pio_plain, 1)
    counts = (Bell.wildcard_count, Bell.datamatch_count, Bell.pio_count, Bell.value_count)
    assert [bell.read(count) for count in counts] == [1, 1, 1, 2]
    assert [bell.read(c) for c in (Bell.acked_count, Bell.plain_count, Bell.pio_plain_count)] == [1, 1, 1]
    assert [bell.read(e) for e in (Bell.value_errors, Bell.acked_errors, Bell.plain_errors)] == [1, 0, 0]


def test_bell_gives_back_what_was_written_to_its_stretch(bell: Guest[Bell]) -> None:
    bell.write(Bell.region, 0xCAFE, offset=0x20, size=2)
    assert bell.read(Bell.region, offset=0x20, size=2) == 0xCAFE
    assert bell.read(Bell.read_count) == 1


def test_bell_interrupts_on_demand_and_on_ring(bell: Guest[Bell]) -> None:
    bell.write(Bell.irq_now, 3)
    bell.write(Bell.irq_on_ring, 1)
    bell.write(Bell.wildcard, 1)
    bell.write(Bell.irq_now, 99)
    assert bell.interrupts == {(IrqIndex.MSIX, 3): 1, (IrqIndex.MSIX, 0): 1}


def test_bell_starts_counting_anew(bell: Guest[Bell]) -> None:
    bell.write(Bell.wildcard, 1)
    bell.write(Bell.value, 1)
    bell.write(Bell.reset_counters, 1)
    bell.write(Bell.wildcard, 1)
    bell.write(Bell.value, 1)
    assert [bell.read(r) for r in (Bell.wildcard_count, Bell.value_count, Bell.value_errors)] == [1, 1, 0]
