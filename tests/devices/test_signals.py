"""Interrupts of a device: which wait, which are sent, and when (PCI 3.0 §6.8.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import GuestError, IntX, Msi, MsiX, PciDevice
from bellwire.model import capabilities as pci
from bellwire.testing import Guest
from vfio_user import IrqIndex


class Loud(PciDevice, vendor=2, device=1, class_code=1, name="loud"):
    irq = MsiX(70)
    msi = Msi(2)
    line = IntX()


TABLE, PENDING = 0, 70 * 16


@pytest.fixture
def guest() -> Iterator[Guest[Loud]]:
    with Guest(Loud) as guest:
        yield guest


def pending(guest: Guest[Loud]) -> list[int]:
    bits = guest.read(5, PENDING, 8) | guest.read(5, PENDING + 8, 8) << 64
    found = [vector for vector in range(128) if bits >> vector & 1]
    assert found == [vector for vector in range(70) if guest.device.core.signals.is_pending(vector)]
    return found


def sent(guest: Guest[Loud]) -> list[int]:
    return sorted(vector for (kind, vector), count in guest.interrupts.items() for _ in range(count))


def mask_function(guest: Guest[Loud], masked: bool) -> None:
    guest.config_write(guest.device.core.config.at[pci.MSIX] + 2, 0xC000 if masked else 0x8000, 2)


def unmask(guest: Guest[Loud], vector: int, control: int = 0) -> None:
    guest.write(5, control, offset=TABLE + 16 * vector + 12, size=4)


VECTORS = [0, 7, 8, 63, 64, 69]


def test_each_vector_has_its_pending_bit(guest: Guest[Loud]) -> None:
    mask_function(guest, True)
    for number, vector in enumerate(VECTORS, 1):
        guest.device.irq[vector].trigger()
        guest.device.irq[vector].trigger()
        assert pending(guest) == VECTORS[:number]
    assert sent(guest) == []
    mask_function(guest, False)
    assert (pending(guest), sent(guest)) == ([], VECTORS)


@pytest.mark.parametrize("vector", VECTORS)
def test_a_vector_is_sent_when_it_is_unmasked(guest: Guest[Loud], vector: int) -> None:
    for each in VECTORS:
        unmask(guest, each, 1)
        guest.device.irq[each].trigger()
    unmask(guest, vector, 0xFFFF_FFFE)  # the other bits are reserved
    assert sent(guest) == [vector]
    assert pending(guest) == [each for each in VECTORS if each != vector]


def test_mask_bits_count_once_the_guest_has_written_the_table(guest: Guest[Loud]) -> None:
    assert guest.read(5, TABLE + 12, 4) == 1, "every vector starts masked"
    guest.device.irq[3].trigger()
    assert sent(guest) == [3]
    unmask(guest, 4)
    guest.device.irq[3].trigger()
    guest.device.irq[4].trigger()
    assert (sent(guest), pending(guest)) == ([3, 4], [3])
    guest.reset()
    guest.enable()
    guest.device.irq[3].trigger()
    assert sent(guest) == [3, 3, 4]


@pytest.mark.parametrize(("offset", "size", "taken"), [(12, 4, True), (8, 8, True), (13, 4, False), (12, 2, False),
                                                       (12, 1, False)])  # fmt: skip
def test_only_whole_dwords_of_the_table_are_written(guest: Guest[Loud], offset: int, size: int, taken: bool) -> None:
    guest.write(5, 0, offset=offset, size=size)
    assert guest.read(5, 12, 4) == (0 if taken else 1)
    assert guest.device.core.state.table_used is taken


def test_pending_bits_cannot_be_written(guest: Guest[Loud]) -> None:
    guest.write(5, 0xFF, offset=PENDING, size=8)
    assert pending(guest) == []


def test_a_vector_waits_while_bus_mastering_is_off(guest: Guest[Loud]) -> None:
    mask_function(guest, True)
    guest.device.irq[9].trigger()
    guest.config_write(pci.COMMAND, 0, 2)
    mask_function(guest, False)
    assert (pending(guest), sent(guest)) == ([9], [])
    with pytest.raises(GuestError, match="MSIX vector 1 dropped: the guest has bus mastering off"):
        guest.device.irq[1].trigger()
    guest.config_write(pci.COMMAND, pci.BUS_MASTER, 2)
    assert (pending(guest), sent(guest)) == ([], [9])


def test_a_restore_sends_what_was_pending(guest: Guest[Loud]) -> None:
    mask_function(guest, True)
    guest.device.irq[9].trigger()
    guest.device.irq[64].trigger()
    mask_function_bits = guest.snapshot()
    mask_function(guest, False)
    guest.interrupts.clear()
    guest.restore(mask_function_bits)
    assert (pending(guest), sent(guest)) == ([9, 64], [])
    mask_function(guest, False)
    assert (pending(guest), sent(guest)) == ([], [9, 64])


def test_what_a_client_has_taken_is_pending_no_longer(guest: Guest[Loud], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "signal", lambda *_: False)
    for vector in (1, 8, 9):
        guest.device.irq[vector].trigger()
    unmask(guest, 8, 0)
    unmask(guest, 1, 0)
    assert pending(guest) == [1, 8, 9]
    monkeypatch.setattr(guest, "undelivered", lambda kind, vector: (kind, vector) == (IrqIndex.MSIX, 1))
    guest.device.core.signals.taken()
    assert pending(guest) == [1, 9], "1 waits for the client, and 9 is masked"


def test_vectors_say_how_many_they_are_and_whether_they_are_on(guest: Guest[Loud]) -> None:
    irq, msi = guest.device.irq, guest.device.msi
    assert (len(irq), len(msi)) == (70, 2)
    assert (irq.enabled, msi.enabled) == (True, False)
    guest.config_write(guest.device.core.config.at[pci.MSIX] + 2, 0, 2)
    guest.config_write(guest.device.core.config.at[pci.MSI] + 2, 1, 2)
    assert (irq.enabled, msi.enabled) == (False, True)
    with pytest.raises(IndexError):
        irq[70]


def test_signals_are_counted_whether_they_are_sent_or_not(guest: Guest[Loud]) -> None:
    mask_function(guest, True)
    guest.device.irq[5].trigger()
    mask_function(guest, False)
    guest.device.msi[1].trigger()
    for level in (True, True, False, True):
        (guest.device.line.high if level else guest.device.line.low)()
    tally = guest.device.core.tally.interrupts
    assert (tally["MSI-X"][5], tally["MSI"], tally["INTx"]) == (2, [0, 1], [2])
    assert sum(tally["MSI-X"]) == 2


def test_the_level_is_told_again_after_a_reset_and_a_restore(guest: Guest[Loud]) -> None:
    guest.config_write(guest.device.core.config.at[pci.MSIX] + 2, 0, 2)
    guest.device.line.high()
    high = guest.snapshot()
    assert (guest.line, guest.device.line.asserted) == (True, True)
    guest.reset()
    assert (guest.line, guest.device.line.asserted) == (False, False)
    guest.restore(high)
    assert (guest.line, guest.device.line.asserted) == (True, True)


def test_without_a_host_a_vector_waits_and_a_message_is_lost() -> None:
    device = Loud()
    device.core.config.write(4, memoryview(b"\x04\x00"))
    device.irq[2].trigger()
    device.msi[0].trigger()
    device.line.high()
    assert device.core.signals.is_pending(2)
    device.core.signals.taken()
    assert device.core.signals.is_pending(2)
