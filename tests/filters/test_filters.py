"""What a filter sees, and what it can change: each event, with the test's guest."""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, GuestError, MsiX, OptionError, PciDevice
from bellwire.filters import (
    Argument,
    Client,
    DmaRead,
    DmaWrite,
    Duration,
    Filter,
    FilterError,
    Hook,
    Interrupt,
    Read,
    Reset,
    Ring,
    Write,
)
from bellwire.testing.guest import Guest
from vfio_user import IrqIndex


class Status(IntFlag):
    READY = 1
    BUSY = 0x80


class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    """Copies 16 bytes of guest memory, from ``source`` on, 32 bytes on."""

    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Status, reset=Status.READY)
    source = mmio.reg(0x08, size=8, access="rw")
    low = mmio.reg(0x10, access="rw")
    high = mmio.reg(0x14, access="rw")
    go = mmio.doorbell(0x20)
    tail = mmio.doorbell(0x24, value=True)
    row = mmio.ioregion(0x100, size=0x40)
    odd = mmio.ioregion(0x200, size=0x10, bell=4)

    def reset(self) -> None:
        self.seen = 0

    @go.ring
    def start(self) -> None:
        self.seen += 1
        self.dma.write(self.source + 32, self.dma.read(self.source, 16))
        self.irq[0].trigger()

    @tail.ring
    def moved(self, value: int) -> None:
        self.seen = value

    @row.read
    def read_row(self, offset: int, size: int) -> int:
        return offset

    @row.write
    def write_row(self, offset: int, size: int, value: int) -> None:
        self.seen = value

    @odd.write
    def ring_odd(self, offset: int, size: int, value: int) -> None:
        self.seen = offset << 16 | value


class All(Filter):
    """Writes down every event, and does nothing to it."""

    def start(self) -> None:
        self.seen: list[str] = []

    def before_read(self, read: Read) -> None:
        self.seen.append(f"read {read.place.name}")

    def after_read(self, read: Read) -> None:
        self.seen.append(f"{read.place.name} is {read.value:#x}")

    def before_write(self, write: Write) -> None:
        self.seen.append(f"write {write.place.name} {write.value:#x}")

    def before_ring(self, ring: Ring) -> None:
        self.seen.append(f"ring {ring.name} {ring.value} {ring.count} {ring.mechanism}")

    def after_ring(self, ring: Ring) -> None:
        self.seen.append(f"rung {ring.name}")

    def after_dma_read(self, read: DmaRead) -> None:
        self.seen.append(f"dma read {read.address:#x} {read.data.hex()}")

    def after_dma_write(self, write: DmaWrite) -> None:
        self.seen.append(f"dma write {write.address:#x} {write.data.hex()}")

    def after_interrupt(self, interrupt: Interrupt) -> None:
        self.seen.append(f"{interrupt.kind.name} {interrupt.vector} {interrupt.outcome}")

    def before_hook(self, hook: Hook) -> None:
        self.seen.append(f"hook {hook.name} at {hook.depth}")

    def after_reset(self, reset: Reset) -> None:
        self.seen.append("reset")

    def client(self, client: Client) -> None:
        self.seen.append(f"client {client.connected}")


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
        assert place.touches("high") and not place.touches(Copier.status)


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
        assert guest.memory[0x220:0x226] == b"\xffxxx\0\0"
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


class Slow(Filter):
    """Delays."""

    delays = True
    read = Duration(0, help="of a read")
    write = Duration(0, help="of a write")
    interrupt = Duration(0, help="of an interrupt")

    def before_read(self, read: Read) -> None:
        read.delay(self.read)

    def before_write(self, write: Write) -> None:
        write.delay(self.write)

    def before_interrupt(self, interrupt: Interrupt) -> None:
        interrupt.delay(self.interrupt)


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


def test_a_filter_that_raises_is_taken_out_and_the_device_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Filter):
        def after_read(self, read: Read) -> None:
            raise ValueError("of mine")

    with Guest(Copier, filters=[Broken()]) as guest:
        assert guest.read(Copier.status) == Status.READY
        assert len(guest.filters) == 0
        assert guest.filters.failures == {"broken": "ValueError: of mine"}
        assert "filter broken failed, and is taken out: ValueError: of mine" in caplog.text


def test_an_error_of_a_strict_filter_goes_to_the_caller() -> None:
    class Check(Filter):
        strict = True

        def before_write(self, write: Write) -> None:
            raise AssertionError("never write")

    with Guest(Copier, filters=[Check()]) as guest, pytest.raises(AssertionError, match="never write"):
        guest.write(Copier.low, 1)


def paths(guest: Guest[Any]) -> list[object]:
    core = guest.device.core
    names = ("reader", "writer", "ring", "ring_value", "ring_in_row", "ioregion_read", "ioregion_write", "call", "reset")
    parts = [getattr(core, name) for name in (*names, "join", "remapped")]
    parts += [core.signals.trigger, core.signals.drive, core.signals.resend, core.host]
    return [*parts, core.reader(0, 0, 4).plain, vars(core.signals).keys()]


def test_without_a_filter_the_paths_are_those_without_this_room() -> None:
    with Guest(Copier) as guest:
        before, cells = paths(guest), guest.device.core.spaces[0]
        assert not {"reader", "call", "reset"} & vars(guest.device.core).keys()
        look = All()
        guest.filters.add(look)
        assert paths(guest) != before
        guest.filters.remove(look)
        assert paths(guest) == before
        assert guest.device.core.spaces[0] is cells
        assert not {"reader", "call", "reset"} & vars(guest.device.core).keys()


def test_a_filter_is_only_in_the_paths_of_its_events() -> None:
    class Irqs(Filter):
        def after_interrupt(self, interrupt: Interrupt) -> None:
            pass

    with Guest(Copier) as guest:
        core = guest.device.core
        reader, ring, call = core.reader, core.ring, core.call
        guest.filters.add(Irqs())
        assert (core.reader, core.ring, core.call) == (reader, ring, call)
        assert core.reader(0, 0, 4).plain
        assert not guest.device.dma.copied


def test_the_device_s_own_way_to_its_registers_is_not_the_guest_s() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest:
        look.seen.clear()
        guest.device.write_bar(0, 0x10, bytes(4))
        assert guest.device.read_bar(0, 0x10, 4) == bytes(4)
        assert not look.seen


def test_random_numbers_depend_on_the_seed() -> None:
    assert Slow(seed=3).random.random() == Slow(seed="3").random.random() != Slow().random.random()


def test_arguments_are_checked() -> None:
    with pytest.raises(OptionError, match="filter slow has no option raed: did you mean read"):
        Slow(raed="2ms")
    with pytest.raises(OptionError, match="option read=2 parsecs: expected a duration, as 2ms"):
        Slow(read="2 parsecs")
    assert str(Slow(read="2ms", write=1)) == "slow:read=2ms,write=1s"


def test_a_method_for_no_event_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"before_raed: a filter has no such event: did you mean before_read\?"):

        class Typo(Filter):
            def before_raed(self, read: Read) -> None: ...


def test_a_filter_is_in_one_device_once() -> None:
    look = All()
    with Guest(Copier, filters=[look]) as guest, Guest(Copier) as other:
        with pytest.raises(FilterError, match="in a device already"):
            other.filters.add(look)
        with pytest.raises(FilterError, match="no filter trace in copier: it has all"):
            guest.filters.remove("trace")
