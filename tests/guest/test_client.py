"""QEMU's client and our server, without a guest: what each says to the other."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device, Served, kill
from machine import Machine
from qtest import Function
from vfio_user import Command, MessageFlags, RegionIndex, Version

pytestmark = pytest.mark.guest

Drive = Callable[..., Machine]
Serve = Callable[[Device], Served]

# bell
PLAIN, PLAIN_COUNT, PLAIN_ERRORS = 0x10, 0x68, 0x90
BELLS, REGION, PORTS, PIO_PLAIN, PIO_PLAIN_COUNT = 1, 0x100, 2, 4, 0x70
# probe
PROBE = f"{Path(__file__).with_name('probe.py')}:probe"
SHARED = f"{Path(__file__).with_name('probe.py')}:shared"
ADDRESS, RESULT = 0x00, 0x08
BY_WRITE, BY_TIMER, BY_READ, BY_BELL, STORE, LENGTH, SUM = 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28
WINDOW, PAGE = 2, 4096

RAM = 0x10_0000
ALL_ONES = 0xFFFF_FFFF
HOST_BRIDGE, SHADOWS = 0, 0x90  # q35's PAM registers: what the firmware's addresses lead to
DECODE, MASTER = 0x3, 0x4
PATIENCE = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes by itself; each look at the machine takes a moment."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"


# -- beginning


def test_the_version_is_the_lowest_and_its_reply_short(drive: Drive, serve: Serve) -> None:
    bell = serve(Device("bell"))
    drive(bell)
    asked, answered = bell.tap.messages()[:2]
    assert (asked.command, answered.command, answered.flags, answered.fds) == (1, 1, MessageFlags.REPLY, 0)
    version = Version.unpack(memoryview(answered.start))
    assert (version.major, version.minor) == (0, 0)
    assert "io_fds" not in answered.start.decode()


def test_nothing_that_qemu_sends_at_its_start_and_reset_is_refused(drive: Drive, serve: Serve) -> None:
    edu = serve(Device("edu"))
    machine = drive(edu)
    machine.control.ask("system_reset")
    machine.port_in(0x80, 1)
    assert [str(seen) for seen in edu.tap.messages() if seen.flags & MessageFlags.ERROR] == []
    assert Command.DEVICE_GET_REGION_IO_FDS not in edu.tap.commands()


def test_bars_are_sized(drive: Drive) -> None:
    bell, edu = drive(Device("bell"), Device("edu")).functions
    assert [bell.sizing(bar) for bar in range(6)] == [0xFFFF_F000, 0xFFFF_F000, 0xFFFF_FFF1, 0, 0, 0xFFFF_F000]
    assert [edu.sizing(bar) for bar in range(6)] == [0xFFF0_0000, 0, 0, 0, 0, 0]


# -- registers


def test_registers_are_read_in_every_width_and_alignment(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    assert [bell.read(0, 0, size) for size in (1, 2, 4, 8)] == [0x01, 0x0001, 0xBE11_0001, 0xBE11_0001]
    assert [bell.read(0, at, size) for at, size in ((2, 2), (3, 1), (1, 4))] == [0xBE11, 0xBE, 0x00BE_1100]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_registers_are_written_in_every_width(drive: Drive, size: int) -> None:
    (bell,) = drive(Device("bell")).functions
    value = 0x8877_6655_4433_2211 & ((1 << 8 * size) - 1)
    bell.write(BELLS, REGION + 8, value, size)
    assert bell.read(BELLS, REGION + 8, size) == value
    assert bell.read(BELLS, REGION + 8, 8) == value


def test_writes_of_memory_are_posted_and_those_of_ports_and_config_space_are_not(drive: Drive, serve: Serve) -> None:
    served = serve(Device("bell"))
    machine = drive(served)
    (bell,) = machine.functions
    bell.write(0, PLAIN, 1)
    machine.port_out(bell.bars[PORTS] + PIO_PLAIN, 1)
    assert (bell.read(0, PLAIN_COUNT, 8), bell.read(0, PIO_PLAIN_COUNT, 8)) == (1, 1)
    writes = [seen for seen in served.tap.messages() if seen.command == Command.REGION_WRITE and not seen.is_reply]
    assert {(int.from_bytes(seen.start[8:12], "little"), seen.posted) for seen in writes} == {
        (0, True),
        (PORTS, False),
        (RegionIndex.CONFIG, False),
    }


def test_posted_writes_come_in_order_and_before_the_read_that_follows(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    for number in range(1, 1001):
        bell.write(0, PLAIN, number)
    assert (bell.read(0, PLAIN_COUNT, 8), bell.read(0, PLAIN_ERRORS, 8)) == (1000, 0)


def test_an_area_is_touched_without_a_message_and_ends_posting(drive: Drive, serve: Serve) -> None:
    served = serve(Device(SHARED))
    machine = drive(served)
    (probe,) = machine.functions
    before = len(served.tap.messages())
    probe.write(WINDOW, PAGE, 0x1234_5678)
    assert probe.read(WINDOW, PAGE) == 0x1234_5678
    assert len(served.tap.messages()) == before
    assert probe.read(WINDOW, 0) == 0x1234_5678  # a register tells what the device sees
    probe.write(0, RESULT, 5)
    assert not any(seen.posted for seen in served.tap.messages())


# -- interrupts


def test_intx_is_a_level_until_acknowledged(drive: Drive) -> None:
    machine = drive(Device("edu"))
    (edu,) = machine.functions
    machine.watch_interrupts()
    line = 16 + 4 + 1  # slot 1's INTA is the south bridge's line F

    def raised() -> bool:
        machine.port_in(0x80, 1)
        return line in machine.raised

    assert not raised()
    edu.write(0, 0x60, 0x6)
    until(raised)
    for _ in range(3):  # an access lets the line fall (QEMU takes it for the guest's EOI), and it rises again
        assert edu.read(0, 0x24) == 0x6
        until(raised)
    edu.write(0, 0x64, 0x2)
    until(raised)
    edu.write(0, 0x64, 0x4)
    assert edu.read(0, 0x24) == 0
    until(lambda: not raised())


class Vectors:
    """An MSI-X table whose messages go to memory, where they can be counted on."""

    ADDRESS, DATA = RAM, 0xA0

    def __init__(self, function: Function) -> None:
        self.function = function
        self.machine = function.machine
        self.capability = function.capability(0x11)
        where = function.config_read(self.capability + 4)
        self.bar, self.table = where & 7, where & ~7
        self.pending_bits = function.config_read(self.capability + 8) & ~7

    def enable(self, control: int = 0x8000) -> None:
        self.function.config_write(self.capability + 2, control, 2)

    def set(self, vector: int, *, masked: bool) -> None:
        entry = self.table + 16 * vector
        for at, value in enumerate((self.ADDRESS + 4 * vector, 0, self.DATA + vector, int(masked))):
            self.function.write(self.bar, entry + 4 * at, value)

    def take(self, vector: int) -> bool:
        """Whether the vector's message has come; it is taken away."""
        came = self.machine.read(self.ADDRESS + 4 * vector) == self.DATA + vector
        if came:
            self.machine.write(self.ADDRESS + 4 * vector, 0)
        return came

    def pending(self, vector: int) -> bool:
        return bool(self.function.read(self.bar, self.pending_bits, 8) >> vector & 1)


IRQ_NOW = 0x08


def test_msix_goes_where_the_table_says(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    vectors = Vectors(bell)
    vectors.enable()
    for vector in (0, 3, 7):
        vectors.set(vector, masked=False)
        bell.write(0, IRQ_NOW, vector)
        until(functools.partial(vectors.take, vector))


def test_a_masked_vector_comes_when_it_is_unmasked(drive: Drive) -> None:
    """QEMU takes the interrupt and holds it back; the guest sees no pending bit, since it reads ours (docs/qemu.md)."""
    (bell,) = drive(Device("bell")).functions
    vectors = Vectors(bell)
    vectors.enable()
    vectors.set(2, masked=False)
    bell.write(0, IRQ_NOW, 2)
    until(lambda: vectors.take(2))
    vectors.set(2, masked=True)
    bell.write(0, IRQ_NOW, 2)
    assert not vectors.pending(2)
    assert not vectors.take(2)
    vectors.set(2, masked=False)
    until(lambda: vectors.take(2))


def test_a_vector_that_was_never_unmasked_is_pending_too(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    vectors = Vectors(bell)
    vectors.enable()
    vectors.set(5, masked=True)
    bell.write(0, IRQ_NOW, 5)
    assert vectors.pending(5)
    vectors.set(5, masked=False)
    until(lambda: vectors.take(5))
    assert not vectors.pending(5)


def test_a_function_mask_holds_all_vectors_back(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    vectors = Vectors(bell)
    vectors.enable()
    vectors.set(1, masked=False)
    vectors.enable(0xC000)
    bell.write(0, IRQ_NOW, 1)
    assert bell.read(0, 0) == 0xBE11_0001
    assert not vectors.take(1)
    vectors.enable(0x8000)
    until(lambda: vectors.take(1))


def test_msix_can_be_turned_off_and_on_again(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    vectors = Vectors(bell)
    for _ in range(3):
        vectors.enable()
        vectors.set(0, masked=False)
        bell.write(0, IRQ_NOW, 0)
        until(lambda: vectors.take(0))
        vectors.enable(0)


# -- resets


def test_a_reset_of_the_machine_resets_the_device(drive: Drive, serve: Serve) -> None:
    served = serve(Device("bell"))
    machine = drive(served)
    (bell,) = machine.functions
    bell.write(0, PLAIN, 1)
    assert bell.read(0, PLAIN_COUNT, 8) == 1
    before = served.tap.commands().count(Command.DEVICE_RESET)
    machine.control.ask("system_reset")
    bell.enable(0xE000_0000)
    assert bell.read(0, PLAIN_COUNT, 8) == 0
    assert served.tap.commands().count(Command.DEVICE_RESET) > before


def test_a_function_level_reset_resets_the_device(drive: Drive) -> None:
    (bell,) = drive(Device("bell")).functions
    bell.write(0, PLAIN, 1)
    control = bell.capability(0x10) + 8
    bell.config_write(control, bell.config_read(control, 2) | 0x8000, 2)
    assert bell.config_read(0x04, 2) & 7 == 0
    bell.enable(0xE000_0000)
    assert bell.read(0, PLAIN_COUNT, 8) == 0


def test_a_reset_of_its_bus_resets_the_device(drive: Drive, serve: Serve) -> None:
    served = serve(Device("bell", qemu={"bus": "behind"}))
    machine = drive(served, arguments=["-device", "pcie-root-port,id=behind,chassis=1,slot=1,addr=1"], place=False)
    port, bell = Function(machine, 1), Function(machine, 0, bus=1)
    port.config_write(0x18, 0x0001_0100)  # buses: its own is 0, the one behind it 1
    port.config_write(0x20, 0xE0F0_E000)  # memory behind it
    port.config_write(0x04, DECODE | MASTER, 2)
    bell.enable(0xE000_0000)
    bell.write(0, PLAIN, 1)
    assert bell.read(0, PLAIN_COUNT, 8) == 1
    before = served.tap.commands().count(Command.DEVICE_RESET)
    for control in (0x40, 0x00):
        port.config_write(0x3E, control, 2)
    assert served.tap.commands().count(Command.DEVICE_RESET) == before + 1
    bell.enable(0xE000_0000)
    assert bell.read(0, PLAIN_COUNT, 8) == 0


# -- memory


@pytest.mark.parametrize("how", [BY_WRITE, BY_TIMER, BY_BELL])
@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_fetched(drive: Drive, serve: Serve, how: int, shared: bool) -> None:
    served = serve(Device(PROBE))
    machine = drive(served, shared=shared)
    (probe,) = machine.functions
    machine.write(RAM, 0x600D_DA7A)
    probe.write(0, ADDRESS, RAM, 8)
    probe.write(0, how, 1)
    until(lambda: probe.read(0, RESULT) == 0x600D_DA7A)
    assert (Command.DMA_READ in served.tap.commands()) is not shared


@pytest.mark.parametrize("size", [500 << 10, 3 << 20])
def test_a_large_piece_of_memory_that_is_not_shared_is_fetched(drive: Drive, serve: Serve, size: int) -> None:
    """QEMU would cut short a reply for which its socket has no room."""
    served = serve(Device(PROBE))
    machine = drive(served, shared=False)
    (probe,) = machine.functions
    content = bytearray(size)
    for at in range(0, size, 64 << 10):
        content[at : at + 4] = (0xBE11_0000 + at).to_bytes(4, "little")
        machine.write(RAM + at, 0xBE11_0000 + at)
    probe.write(0, ADDRESS, RAM, 8)
    probe.write(0, LENGTH, size)
    probe.write(0, SUM, 1)
    until(lambda: probe.read(0, RESULT) == zlib.crc32(content))


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_stored_to(drive: Drive, shared: bool) -> None:
    machine = drive(Device(PROBE), shared=shared)
    (probe,) = machine.functions
    probe.write(0, RESULT, 0x0DD_BA11)
    probe.write(0, ADDRESS, RAM, 8)
    probe.write(0, STORE, 1)
    until(lambda: machine.read(RAM) == 0x0DD_BA11)


@pytest.mark.parametrize("how", ["read", "port"])
def test_memory_is_fetched_while_the_guest_waits_where_it_is_shared(drive: Drive, how: str) -> None:
    machine = drive(Device(PROBE))
    assert fetch_while_waited_for(machine, how) == 0x600D_DA7A


@pytest.mark.parametrize("how", ["read", "port"])
def test_dma_by_message_while_the_guest_waits_fails_soon_and_does_no_harm(drive: Drive, serve: Serve, how: str) -> None:
    served = serve(Device(PROBE))
    machine = drive(served, shared=False)
    (probe,) = machine.functions
    start = time.monotonic()
    failed = fetch_while_waited_for(machine, how)
    assert time.monotonic() - start < 5.0  # for which QEMU waits; the device has given up after one
    asked = questions(served)
    again = fetch_while_waited_for(machine, how)
    assert (failed, again) == ((ALL_ONES, ALL_ONES) if how == "read" else (0, 0))
    assert (asked, questions(served)) == (1, 1)  # QEMU is not asked in vain again
    until(lambda: "does not answer DMA_READ while it waits" in served.log)
    probe.write(0, BY_BELL, 1)
    until(lambda: probe.read(0, RESULT) == 0x600D_DA7A)


def questions(served: Served) -> int:
    """How often the device has asked for memory, or for the layout of such messages."""
    commands = served.tap.commands()
    return commands.count(Command.DMA_READ) + commands.count(Command.DMA_WRITE)


def fetch_while_waited_for(machine: Machine, how: str) -> int:
    (probe,) = machine.functions
    machine.write(RAM, 0x600D_DA7A)
    probe.write(0, ADDRESS, RAM, 8)
    if how == "read":
        return probe.read(0, BY_READ)
    machine.port_out(probe.bars[1], 1)
    return probe.read(0, RESULT)


def test_no_memory_for_a_device_that_is_no_bus_master(drive: Drive, serve: Serve) -> None:
    served = serve(Device(PROBE))
    machine = drive(served)
    (probe,) = machine.functions
    probe.config_write(0x04, DECODE, 2)
    probe.write(0, ADDRESS, RAM, 8)
    probe.write(0, BY_BELL, 1)
    assert probe.read(0, RESULT) == 0
    until(lambda: "bus mastering off" in served.log)


@pytest.mark.parametrize("shared", [True, False])
def test_memory_that_is_not_there_is_the_guests_mistake(drive: Drive, serve: Serve, shared: bool) -> None:
    served = serve(Device(PROBE))
    (probe,) = drive(served, shared=shared).functions
    probe.write(0, ADDRESS, 1 << 40, 8)
    probe.write(0, BY_BELL, 1)
    assert probe.read(0, RESULT) == 0
    until(lambda: "guest error" in served.log)


def test_memory_is_kept_track_of_while_the_machine_is_rearranged(drive: Drive, serve: Serve) -> None:
    served = serve(Device(PROBE))
    machine = drive(served)
    (probe,) = machine.functions
    bridge = Function(machine, HOST_BRIDGE)
    before = served.tap.commands().count(Command.DMA_MAP)
    probe.write(0, ADDRESS, RAM, 8)
    for turn in range(60):
        machine.write(RAM, turn)
        for register in range(1, 7):
            bridge.config_write(SHADOWS + register, 0x33 if turn % 2 else 0x00, 1)
        probe.write(0, BY_BELL, 1)
        assert probe.read(0, RESULT) == turn
    assert served.tap.commands().count(Command.DMA_MAP) - before > 200
    assert not any(seen.flags & MessageFlags.ERROR for seen in served.tap.messages())


# -- endings


def test_a_device_that_dies_reads_all_ones_and_the_machine_lives(drive: Drive, serve: Serve) -> None:
    served = serve(Device("bell"))
    machine = drive(served)
    (bell,) = machine.functions
    kill(served.process)
    until(lambda: bell.read(0, 0) == ALL_ONES)
    bell.write(0, PLAIN, 1)
    assert bell.config_read(0x04, 2) == 0xFFFF
    assert machine.control.ask("query-status")["running"]


def test_a_machine_that_ends_leaves_the_device_to_the_next(drive: Drive, serve: Serve) -> None:
    served = serve(Device("bell"))
    for _ in range(2):
        machine = drive(served)
        (bell,) = machine.functions
        bell.write(0, PLAIN, 1)
        assert bell.read(0, PLAIN_COUNT, 8) == 1  # QEMU resets a device that it finds
        machine.control.ask("quit")
        machine.process.wait(PATIENCE)
    assert served.process.poll() is None
