"""DOE: a mailbox that takes one object at a time, and answers it (PCIe 6.0 §6.30, §7.9.24)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import DeclarationError, Doe, GuestError, Msi, MsiX, PciDevice
from bellwire.declare.hooks import mark
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance
from vfio_user import IrqIndex

ABORT, INTERRUPT_ENABLE, GO = 1 << 0, 1 << 1, 1 << 31
BUSY, INTERRUPT, ERROR, READY = 1 << 0, 1 << 1, 1 << 2, 1 << 31
VENDOR, ECHO, LATER, BROKEN = 0x1234, 0x01, 0x02, 0x03


class Talker(PciDevice, vendor=0x1234, device=0xD0E0, class_code=0x088000):
    """Answers what it is asked backwards: at once, later, or not at all."""

    irq = MsiX(4)
    mailbox = Doe((VENDOR, ECHO), (VENDOR, LATER), (VENDOR, BROKEN), vector=2, largest=64)

    @mailbox.request
    def asked(self, vendor: int, kind: int, data: bytes) -> bytes | None:
        if kind == ECHO:
            return data[::-1]
        if kind == LATER:
            self.after(1.0, self.answer_now)
            return None
        raise GuestError("cannot say")

    def answer_now(self) -> None:
        pending = self.mailbox.pending
        self.mailbox.answer(b"" if pending is None else pending.data[::-1])

    def restored(self) -> None:
        if self.mailbox.busy:
            self.after(1.0, self.answer_now)


TestTalker = conformance(Talker)


@pytest.fixture
def guest() -> Iterator[Guest[Talker]]:
    with Guest(Talker) as guest:
        yield guest


def status(guest: Guest[Talker]) -> int:
    return guest.read(Talker.mailbox.status)


def put(guest: Guest[Talker], *words: int) -> None:
    for word in words:
        guest.write(Talker.mailbox.outbox, word)


def send(guest: Guest[Talker], kind: int, *words: int, vendor: int = VENDOR) -> None:
    put(guest, vendor | kind << 16, 2 + len(words), *words)
    guest.write(Talker.mailbox.control, GO)


def take(guest: Guest[Talker]) -> list[int]:
    """All dwords of the answer."""
    found = []
    while status(guest) & READY:
        found.append(guest.read(Talker.mailbox.inbox))
        guest.write(Talker.mailbox.inbox, 0)
    return found


def test_an_object_is_answered(guest: Guest[Talker]) -> None:
    send(guest, ECHO, 0x0403_0201, 0x0807_0605)
    assert status(guest) == READY
    assert take(guest) == [VENDOR | ECHO << 16, 4, 0x0506_0708, 0x0102_0304]
    assert status(guest) == 0
    assert guest.read(Talker.mailbox.inbox) == 0


def test_a_mailbox_is_busy_while_an_object_waits_and_says_whether_an_answer_is_wanted(
    guest: Guest[Talker],
) -> None:
    mailbox = guest.device.mailbox
    before = mailbox.busy, mailbox.answer(b"")
    send(guest, LATER, 0x0403_0201)
    during = mailbox.busy, mailbox.answer(b"back")
    assert (before, during, mailbox.busy) == ((False, False), (True, True), False)
    assert take(guest)[2:] == [int.from_bytes(b"back", "little")]


def test_a_write_of_control_without_a_command_does_nothing(guest: Guest[Talker]) -> None:
    put(guest, VENDOR | ECHO << 16, 3, 0x0403_0201)
    guest.write(Talker.mailbox.control, 0)
    assert status(guest) == 0
    guest.write(Talker.mailbox.control, GO)
    assert status(guest) == READY


@pytest.mark.parametrize("kind", [ECHO, LATER])
def test_a_second_go_before_the_answer_was_taken_is_an_error(guest: Guest[Talker], kind: int) -> None:
    send(guest, kind, 0x0403_0201)
    assert not status(guest) & ERROR
    guest.write(Talker.mailbox.control, GO)
    assert status(guest) & ERROR


def test_an_answer_is_taken_to_its_very_end(guest: Guest[Talker]) -> None:
    words = list(range(1, Talker.mailbox.largest // 4 - 1))
    send(guest, ECHO, *words)
    assert [int.from_bytes(word.to_bytes(4, "big"), "little") for word in reversed(take(guest)[2:])] == words


def test_bits_of_the_header_that_are_reserved_do_not_matter(guest: Guest[Talker]) -> None:
    put(guest, VENDOR | ECHO << 16 | 0xFF << 24, 3 | 0x3FFF << 18, 0x0403_0201)
    guest.write(Talker.mailbox.control, GO)
    assert take(guest) == [VENDOR | ECHO << 16, 3, 0x0102_0304]


def test_discovery_lists_the_protocols(guest: Guest[Talker]) -> None:
    found = []
    index = 0
    while True:
        send(guest, 0x00, index, vendor=0x0001)
        header, length, entry = take(guest)
        assert (header, length) == (0x0001, 3)
        found.append((entry & 0xFFFF, entry >> 16 & 0xFF))
        index = entry >> 24
        if not index:
            break
    assert found == [(0x0001, 0), (VENDOR, ECHO), (VENDOR, LATER), (VENDOR, BROKEN)]


def test_discovery_beyond_the_list_finds_nobody(guest: Guest[Talker]) -> None:
    send(guest, 0x00, 9, vendor=0x0001)
    assert take(guest)[2] & 0x00FF_FFFF == 0x00FF_FFFF


def test_a_mailbox_is_busy_until_the_device_answers(guest: Guest[Talker]) -> None:
    send(guest, LATER, 0x0403_0201)
    assert status(guest) == BUSY
    assert guest.device.mailbox.pending == (VENDOR, LATER, b"\1\2\3\4")
    guest.advance(1.0)
    assert take(guest) == [VENDOR | LATER << 16, 3, 0x0102_0304]


def test_it_takes_one_object_at_a_time(guest: Guest[Talker]) -> None:
    send(guest, LATER, 1)
    put(guest, 5)
    assert status(guest) == BUSY | ERROR
    guest.write(Talker.mailbox.control, ABORT)
    assert status(guest) == 0
    assert not guest.device.mailbox.answer(b"too late")
    send(guest, ECHO)
    assert take(guest) == [VENDOR | ECHO << 16, 2]


@pytest.mark.parametrize(
    "words",
    [(VENDOR | ECHO << 16,), (VENDOR | ECHO << 16, 3), (VENDOR | ECHO << 16, 2, 0), (VENDOR | ECHO << 16, 0),
     (VENDOR | 0x77 << 16, 2), (0x4321, 2), (0x0001, 2)],
)  # fmt: skip
def test_an_object_of_another_length_or_an_unknown_protocol_is_discarded(
    guest: Guest[Talker], words: tuple[int, ...]
) -> None:
    put(guest, *words)
    guest.write(Talker.mailbox.control, GO)
    assert status(guest) == 0
    send(guest, ECHO, 7)
    assert len(take(guest)) == 3


def test_an_object_that_is_too_large_is_an_error_until_it_is_aborted(guest: Guest[Talker]) -> None:
    put(guest, *[VENDOR | ECHO << 16, 17, *range(14)])
    assert status(guest) == 0
    put(guest, 1)
    assert status(guest) == ERROR
    guest.write(Talker.mailbox.control, GO)
    assert status(guest) == ERROR
    guest.write(Talker.mailbox.control, ABORT)
    assert status(guest) == 0


def test_taking_an_answer_that_is_not_there_is_an_error(guest: Guest[Talker]) -> None:
    guest.write(Talker.mailbox.inbox, 0)
    assert status(guest) == ERROR


def test_a_hook_that_fails_sets_the_error(guest: Guest[Talker]) -> None:
    with pytest.raises(GuestError, match="cannot say"):
        send(guest, BROKEN)
    assert status(guest) == ERROR


def test_it_interrupts_when_it_is_ready_or_has_failed(guest: Guest[Talker]) -> None:
    guest.write(Talker.mailbox.control, INTERRUPT_ENABLE)
    put(guest, VENDOR | ECHO << 16, 2)
    guest.write(Talker.mailbox.control, INTERRUPT_ENABLE | GO)
    assert guest.interrupts == {(IrqIndex.MSIX, 2): 1}
    assert status(guest) == READY | INTERRUPT
    guest.write(Talker.mailbox.status, INTERRUPT)
    take(guest)
    guest.write(Talker.mailbox.inbox, 0)
    assert guest.interrupts == {(IrqIndex.MSIX, 2): 2}
    assert guest.read(Talker.mailbox.control) == INTERRUPT_ENABLE
    assert guest.read(Talker.mailbox.able) == 1 | 2 << 1


def test_a_half_taken_answer_survives_being_moved(guest: Guest[Talker]) -> None:
    send(guest, ECHO, 0x0403_0201)
    guest.write(Talker.mailbox.inbox, 0)
    with Guest(Talker) as other:
        other.restore(guest.snapshot())
        assert take(other) == [3, 0x0102_0304]


def test_a_reset_empties_it_and_a_soft_reset_does_not(guest: Guest[Talker]) -> None:
    send(guest, ECHO, 1)
    guest.device.reset_registers()
    assert len(take(guest)) == 3
    send(guest, LATER, 1)
    guest.reset()
    assert status(guest) == 0
    assert guest.device.mailbox.pending is None


def test_an_answer_beyond_the_largest_is_the_devices_mistake(guest: Guest[Talker]) -> None:
    send(guest, LATER, 1)
    with pytest.raises(ValueError, match=r"Talker\.mailbox: an answer of 72 bytes, at most 64"):
        guest.device.mailbox.answer(bytes(61))
    assert status(guest) == ERROR


class Quiet(PciDevice, vendor=0x1234, device=0xD0E1, class_code=0x088000):
    """Has two mailboxes, without protocols of their own. One interrupts by MSI."""

    irq = Msi(4)
    first = Doe()
    second = Doe(vector=3)


TestQuiet = conformance(Quiet)


def test_a_device_may_have_several_mailboxes_and_interrupt_by_msi() -> None:
    with Guest(Quiet) as guest:
        assert guest.read(Quiet.first.able) == 0
        guest.write(Quiet.first.control, INTERRUPT_ENABLE)
        assert guest.read(Quiet.first.control) == 0
        guest.write(Quiet.second.control, INTERRUPT_ENABLE)
        guest.write(Quiet.second.inbox, 0)
        assert guest.interrupts == {(IrqIndex.MSI, 3): 1}
        assert (guest.read(Quiet.first.status), guest.read(Quiet.second.status)) == (0, ERROR | INTERRUPT)


def test_it_does_not_interrupt_while_bus_mastering_is_off() -> None:
    with Guest(Quiet) as guest:
        guest.write(Quiet.second.control, INTERRUPT_ENABLE)
        guest.config_write(pci.COMMAND, 0, 2)
        guest.write(Quiet.second.inbox, 0)
        assert not guest.interrupts
        assert guest.read(Quiet.second.status) == ERROR | INTERRUPT


def wrong(**body: Any) -> str:
    with pytest.raises(DeclarationError) as refused:
        type("Wrong", (PciDevice,), body)
    return str(refused.value)


def test_mistakes_are_refused() -> None:
    assert "nothing answers its objects: write @box.request" in wrong(box=Doe((1, 2)))
    assert "it interrupts by vector 1, and the device has 1" in wrong(box=Doe(vector=1), irq=MsiX(1))
    assert "it interrupts by vector 0, and the device has 0" in wrong(box=Doe(vector=0))
    assert "a protocol is a vendor of 16 bits and a type of 8 bits" in wrong(box=Doe((1, 256)))
    assert "it names a protocol twice" in wrong(box=Doe((1, 0)))
    assert "largest is a multiple of 4 from 8 to 1048576 bytes, not 6" in wrong(box=Doe(largest=6))
    assert "largest is a multiple of 4 from 8 to 1048576 bytes, not 1048580" in wrong(box=Doe(largest=(1 << 20) + 4))

    def make_short() -> Any:
        def short(self: object, kind: int) -> bytes:
            return bytes(kind)

        return short

    box = Doe()
    assert "Wrong.box: short is tied to box.control, which the SDK itself handles" in wrong(
        box=box, short=mark(make_short(), "write", box.control)
    )
    box = Doe((1, 2))
    assert "it is called as short(self, vendor, kind, data)" in wrong(box=box, short=mark(make_short(), "request", box))


PLACES = ("able", "control", "status", "outbox", "inbox")
WORDS = st.sampled_from([0, 2, 3, 64, GO, ABORT, VENDOR | ECHO << 16, VENDOR | LATER << 16, 0x0001, 0xFFFF_FFFF])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(PLACES), WORDS, st.sampled_from([1, 2, 4, 8]), st.booleans()), max_size=60))
def test_no_guest_gets_it_into_a_state_that_an_abort_does_not_end(
    accesses: list[tuple[str, int, int, bool]],
) -> None:
    with Guest(Talker) as guest:
        for name, word, size, write in accesses:
            register = getattr(Talker.mailbox, name)
            at = guest.capability(Talker.mailbox) + register.offset
            size = min(size, 0x1000 - at)
            if write:
                guest.config_write(at, word, size)
            else:
                assert 0 <= guest.config_read(at, size) < 1 << 8 * size
        guest.write(Talker.mailbox.control, ABORT)
        guest.advance(2.0)
        send(guest, ECHO, 0x0403_0201)
        assert take(guest) == [VENDOR | ECHO << 16, 3, 0x0102_0304]


@settings(deadline=None, max_examples=20)
@given(st.binary(min_size=12, max_size=12), st.integers(0, 0xFFFF_FFFF))
def test_no_made_up_snapshot_breaks_it(counts: bytes, word: int) -> None:
    with Guest(Talker) as guest:
        guest.device.core.state.saved[Talker.mailbox.counts][:] = counts
        guest.device.core.state.registers[Talker.mailbox][0x0C:0x10] = struct.pack("<I", word)
        guest.restore(guest.snapshot())
        guest.read(Talker.mailbox.inbox)
        guest.write(Talker.mailbox.inbox, 0)
        put(guest, 1)
        guest.write(Talker.mailbox.control, GO)
        guest.advance(2.0)
        guest.write(Talker.mailbox.control, ABORT)
        send(guest, ECHO)
        assert len(take(guest)) == 2
