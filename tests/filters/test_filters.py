"""What a filter sees, and what it can change: each event, with the test's guest."""

from __future__ import annotations

import pytest

from bellwire import GuestError
from bellwire.filters import Argument, DmaRead, DmaWrite, Filter, Interrupt, Read, Write
from bellwire.testing.guest import Guest
from filters.copier import All, Copier, Slow, Status
from vfio_user import IrqIndex


def test_a_filter_sees_what_guest_and_device_do_in_order() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest:
        guest.memory[0x100:0x110] = bytes(range(16))
        guest.write(Copier.source, 0x100)
        look.seen.clear()
        guest.ring(Copier.go)
        data = bytes(range(16)).hex()
        assert look.seen == [
            "ring go None 1 message",
            "hook start at 1",
            f"dma read 0x100 {data}",
            f"dma write 0x120 {data}",
            "MSIX 0 sent",
            "rung go",
        ]
        assert guest.memory[0x120:0x130] == bytes(range(16))


@pytest.mark.parametrize(
    ("offset", "size", "value", "expected"),
    [
        (0x10, 4, 5, ["write low 0x5"]),
        (0x10, 8, 5 << 32, ["write low, high 0x500000000"]),
        (0x20, 4, 5, ["ring go None 1 message", "rung go"]),
        (0x24, 4, 5, ["ring tail 5 1 message", "rung tail"]),
        (0x104, 4, 5, ["write row 0x5"]),
        (0x204, 4, 5, ["ring odd+0x4 5 1 message", "rung odd+0x4"]),
        (0x40, 4, 5, ["write BAR 0, where nothing is 0x5"]),
    ],
)
def test_a_write_is_seen_once_as_what_it_is(offset: int, size: int, value: int, expected: list[str]) -> None:
    class Rings(All):
        before_hook = Filter.before_hook
        after_dma_read, after_dma_write = Filter.after_dma_read, Filter.after_dma_write
        after_interrupt = Filter.after_interrupt

    look = Rings()
    with Guest(Copier, filters=[look]) as guest:
        look.seen.clear()
        guest.write(0, value, offset=offset, size=size)
        assert look.seen == expected


def test_a_place_knows_registers_and_their_values() -> None:
    class Look(Filter):
        def after_read(self, read: Read) -> None:
            self.last = read

    look = Look()
    with Guest(Copier, filters=[look]) as guest:
        guest.read(Copier.status)
        place = look.last.place
        assert (place.register, place.label, place.meaning(look.last.value)) == (Copier.status, "BAR0+0x0", "READY")
        guest.write(0, 0x11223344_55667788, offset=0x10, size=8)
        guest.read(0, 0x12, 4)
        place, value = look.last.place, look.last.value
        assert (place.part(Copier.low, value), place.part(Copier.high, value)) == (0x5566_0000, 0x3344)
        assert place.changed(Copier.high, value, 0xFFFF_ABCD) == 0xABCD_5566
        assert place.touches("high")
        assert not place.touches(Copier.status)


def test_a_filter_changes_answers_and_drops() -> None:
    class Twist(Filter):
        def before_read(self, read: Read) -> None:
            if read.place.name == "low":
                read.answer(0x1_2345_6789)

        def after_read(self, read: Read) -> None:
            read.value |= Status.BUSY

        def before_write(self, write: Write) -> None:
            if write.place.register is Copier.high:
                write.drop()
            else:
                write.value += 1

    with Guest(Copier, filters=[Twist()]) as guest:
        assert guest.read(Copier.status) == Status.READY | Status.BUSY
        assert guest.read(Copier.low) == 0x2345_6789
        guest.write(Copier.low, 0xFFFF_FFFF)
        guest.write(Copier.high, 7)
        assert (guest.device.low, guest.device.high) == (0, 0)


def test_filters_stack_from_the_guest_to_the_model_and_back() -> None:
    class Plus(Filter):
        by = Argument(0)

        def before_write(self, write: Write) -> None:
            write.value = write.value * 10 + self.by

        def after_read(self, read: Read) -> None:
            read.value = read.value * 10 + self.by

    with Guest(Copier, filters=[Plus(by=1), Plus(by=2)]) as guest:
        guest.write(Copier.low, 0)
        assert guest.device.low == 12
        guest.device.low = 0
        assert guest.read(Copier.low) == 21
        assert [label for label, _ in guest.filters] == ["plus", "plus-2"]


def test_dma_is_changed_lost_and_failed() -> None:
    class Bad(Filter):
        def after_dma_read(self, read: DmaRead) -> None:
            if read.address == 0x200:
                read.data = b"\xff" + read.data[1:]

        def before_dma_write(self, write: DmaWrite) -> None:
            if write.address == 0x220:
                write.data = write.data[:4]
            elif write.address == 0x320:
                write.drop()
            elif write.address == 0x420:
                write.fail("the bus is on fire")

    with Guest(Copier, filters=[Bad()]) as guest:
        for source in (0x200, 0x300, 0x400):
            guest.memory[source : source + 16] = b"x" * 16
        for source in (0x200, 0x300):
            guest.write(Copier.source, source)
            guest.ring(Copier.go)
        assert bytes(guest.memory[0x220:0x226]) == b"\xffxxx\0\0"
        assert guest.memory[0x320:0x330] == bytes(16)
        guest.write(Copier.source, 0x400)
        with pytest.raises(GuestError, match="DMA write of 16 bytes at 0x420: the bus is on fire"):
            guest.ring(Copier.go)


def test_interrupts_are_lost_doubled_and_sent_to_another_vector() -> None:
    class Wrong(Filter):
        number = 0

        def before_interrupt(self, interrupt: Interrupt) -> None:
            self.number += 1
            if self.number == 1:
                interrupt.drop()
            elif self.number == 2:
                interrupt.again()
            else:
                interrupt.vector = 1

    with Guest(Copier, filters=[Wrong()]) as guest:
        for _ in range(3):
            guest.ring(Copier.go)
        assert guest.interrupts == {(IrqIndex.MSIX, 0): 2, (IrqIndex.MSIX, 1): 1}


def test_a_delayed_read_lets_time_pass() -> None:
    with Guest(Copier, filters=[Slow(read="2ms")]) as guest:
        guest.device.low = 1
        guest.device.after(0.001, setattr, guest.device, "low", 2)
        assert guest.read(Copier.low) == 2
        assert guest.now == pytest.approx(0.002)


def test_what_comes_behind_a_delayed_write_waits_for_it() -> None:
    with Guest(Copier, filters=[Slow(write=0.001)]) as guest:
        guest.write(Copier.low, 1)
        guest.write(Copier.low, 2)
        guest.ring(Copier.tail, 9)
        assert (guest.device.low, guest.device.seen) == (0, 0)
        guest.advance(0.001)
        assert (guest.device.low, guest.device.seen) == (1, 0)
        assert guest.read(Copier.low) == 2
        assert (guest.device.seen, guest.now) == (9, 0.002)


def test_a_late_interrupt_comes_at_its_time_and_a_reset_forgets_it() -> None:
    with Guest(Copier, filters=[Slow(interrupt="1ms")]) as guest:
        guest.ring(Copier.go)
        assert not guest.interrupts
        guest.advance(0.001)
        assert guest.interrupts[IrqIndex.MSIX, 0] == 1
        guest.ring(Copier.go)
        guest.reset()
        guest.advance(0.001)
        assert guest.interrupts[IrqIndex.MSIX, 0] == 1


def test_a_held_read_goes_on_when_it_is_released() -> None:
    class Hang(Filter):
        delays = True

        def before_read(self, read: Read) -> None:
            read.delay(float("inf"))
            self.after(0.5, self.release)

    with Guest(Copier, filters=[Hang()]) as guest:
        assert guest.read(Copier.status) == Status.READY
        assert guest.now == 0.5


@pytest.mark.parametrize("seconds", [0.001, float("inf")])
def test_a_guest_cannot_fill_memory_behind_a_delayed_write(seconds: float) -> None:
    class Hold(Filter):
        delays = True

        def before_write(self, write: Write) -> None:
            write.delay(seconds)

    with Guest(Copier, filters=[Hold()]) as guest:
        for number in range(2000):
            guest.write(Copier.low, number)
            assert len(guest.filters.arrivals) <= 257
        guest.filters.release()
        assert guest.device.low == (1999 if seconds < 1 else 256)
