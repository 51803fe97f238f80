"""Parts between a device and its host by themselves: loop, sources, system calls, the test guest, and refusals."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from enum import IntEnum, IntFlag
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, MsiX, PciDevice, linux
from bellwire.declare.block import reg
from bellwire.declare.vendor import VendorCapability
from bellwire.serve import sources
from bellwire.serve.host import ClientHost
from bellwire.serve.loop import Loop
from bellwire.serve.noted import EVENTS, LINE, EventSlot, NotedRings, new_slot
from bellwire.serve.sources import BEGUN, CommandSource, EventSource, ShadowSource
from bellwire.stream import Stream
from bellwire.stream.backends import Pty
from bellwire.testing import Guest
from killing import Killed
from vfio_user import DmaFault, Estate, IoCommand, IrqIndex, Kept, Ledger, eventfds
from vfio_user.ioregionfd import SIZE, decode_response, encode_command

IDS = {"vendor": 0x1234, "device": 0x5678, "class_code": 0xFF0000}


class Flags(IntFlag):
    ONE = 1
    FOUR = 4


class Kind(IntEnum):
    LOW = 1


class Dut(PciDevice, vendor=0x1234, device=0x5678, class_code=0xFF0000):
    mmio = Bar(0, size=4096)
    plain = mmio.reg(0)
    flags = mmio.reg(4, Flags)
    kind = mmio.reg(8, Kind, reset=1)
    row = mmio.ioregion(0x100, 16, bell=4, posted=True)
    cap = VendorCapability(b"abcd")
    queues = mmio.block(0x200, count=3, stride=8, word=reg(0))
    gone = False

    @row.ring
    def rung(self, offset: int) -> None:
        if self.gone:
            raise LookupError(f"no {offset}")


# -- declarations


@pytest.mark.parametrize(
    ("register", "value", "meaning"),
    [
        (Dut.plain, 1, ""),
        (Dut.flags, 5, "ONE|FOUR"),
        (Dut.flags, 0, "0"),
        (Dut.kind, 1, "LOW"),
        (Dut.kind, 2, "?"),
    ],
)
def test_a_value_has_a_meaning(register: Any, value: int, meaning: str) -> None:
    assert register.meaning(value) == meaning


def test_a_block_is_gone_through_row_by_row() -> None:
    assert len(Dut.queues) == 3
    assert [row.word.offset for row in Dut.queues] == [0x200, 0x208, 0x210]
    assert Dut.queues[2].word.name == "queues[2].word"
    for what in (Dut.queues, Dut.queues[0]):
        with pytest.raises(AttributeError, match="a row of the block has no wrod: it has word"):
            _ = what.wrod


def refused(words: str, body: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=words):
        type("Bad", (PciDevice,), body, **IDS)


def test_what_lies_in_a_bar_of_another_device_is_refused() -> None:
    other = Bar(0, size=4096)
    refused("its BAR is not declared in Bad", {"word": other.reg(0)})
    refused("its BAR is not declared in Bad", {"irq": MsiX(1, bar=other)})


def test_there_is_one_declaration_of_each_kind_of_interrupt() -> None:
    refused("Bad declares MsiX twice: one and two", {"one": MsiX(1), "two": MsiX(1)})


def test_a_name_that_the_sdk_uses_is_refused_by_its_declaration() -> None:
    refused("PciDevice has this name for its own use", {"reset": Bar(0, size=16)})


@pytest.mark.parametrize("access", ["wo", "constant", "reserved"])
def test_a_read_hook_that_no_read_would_run_is_refused(access: str) -> None:
    bar = Bar(0, size=16)
    word = bar.reg(0, access=access)

    def look(self: PciDevice) -> int:
        return 0

    refused("no guest's read would run it", {"bar": bar, "word": word, "look": word.read(look)})


# -- the test guest


def test_the_guest_says_what_cannot_be_reached() -> None:
    with Guest(Dut) as guest:
        assert guest.config_read(guest.capability(Dut.cap), 4) == int.from_bytes(b"abcd", "little")
        with pytest.raises(TypeError, match="needs a size"):
            guest.read(0, 0)  # type: ignore[call-overload]
        for offset, size in ((4096, 1), (4093, 4), (-1, 1)):
            with pytest.raises(IndexError, match="of region 0, which has 0x1000"):
                guest.read(0, offset, size)
        assert guest.read(0, 4092, 4) == 0
        assert guest.undelivered(IrqIndex.MSIX, 0) is False
        for call in (lambda: guest.dma_read(0, 1), lambda: guest.dma_write(0, memoryview(b""))):
            with pytest.raises(AssertionError):
                call()


def test_an_error_of_a_ring_names_the_doorbell() -> None:
    with Guest(Dut) as guest:
        core = guest.device.core
        core.ring_in_row((Dut.row, 8), 1)
        guest.device.gone = True
        with pytest.raises(LookupError) as raised:
            core.ring_in_row((Dut.row, 8), 1)
        assert raised.value.__notes__ == ["ring of Dut.row at 0x8"]


# -- a worker's host


def test_without_a_client_there_is_no_memory() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    for call in (host.segments, host.whole):
        with pytest.raises(DmaFault, match="no client is connected"):
            call(0x1000, 4, False)
    assert (host.by_message, host.shared_map(0, False)) == (False, None)
    assert host.signal(IrqIndex.MSIX, 0) is False
    assert host.undelivered(IrqIndex.MSIX, 0) is True
    host.level(True)


class Remembering(Ledger):
    """Says what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def keep(self, *entries: Kept) -> None:
        self.told += entries

    def drop(self, *keys: str) -> None:
        self.told += keys


def test_a_file_is_kept_for_a_successor_while_there_is_a_client() -> None:
    ledger = Remembering()
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), ledger)  # type: ignore[arg-type]
    host.keep_file("record", 3, {"size": 4096})
    host.drop_file("record")
    assert ledger.told == []
    host.session = SimpleNamespace()  # type: ignore[assignment]
    host.keep_file("record", 3, {"size": 4096})
    host.drop_file("record")
    assert ledger.told == [Kept("file record", {"size": 4096}, (3,)), "file record"]


def test_a_kept_file_is_there_once() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    assert host.kept_file("record") is None
    host.estate = Estate({"file record": Kept("file record", {"size": 4096}, (3,))})
    assert host.kept_file("record") == (3, {"size": 4096})
    assert host.kept_file("record") is None


def test_with_a_client_it_is_asked() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    levels: list[bool] = []
    dma = SimpleNamespace(whole=lambda *what: what, segments=lambda *what: what, by_message=True)
    irqs = SimpleNamespace(trigger=lambda *what: True, pending=lambda *what: False, set_level=levels.append)
    host.session = SimpleNamespace(dma=dma, irqs=irqs)  # type: ignore[assignment]
    assert [*map(str, (host.whole(1, 2, True), host.segments(1, 2, True)))] == ["(1, 2, True)"] * 2
    assert (host.by_message, host.signal(IrqIndex.MSI, 0), host.undelivered(IrqIndex.MSI, 0)) == (True, True, False)
    host.level(True)
    assert levels == [True]


def test_a_timer_that_is_removed_neither_runs_nor_stays() -> None:
    loop = Loop()
    ran: list[str] = []
    timers = [loop.after(0, lambda name=name: ran.append(name)) for name in "abc"]  # type: ignore[misc]
    loop.remove(timers[1])
    assert len(loop._timers) == 2
    loop.remove(timers[1])
    loop.run_timers()
    assert ran == ["a", "c"]
    loop.remove(timers[0])
    loop.close()


# -- rings


def test_rings_that_are_dropped_run_no_hook() -> None:
    with Guest(Dut) as guest:
        seen: list[tuple[object, ...]] = []
        cell = memoryview(bytearray(4)).cast("I")
        source = ShadowSource(guest.device.core, (Dut.row, 8), cell, print, lambda *what: seen.append(what))
        for drop in (True, False):
            cell[0] = 7
            os.eventfd_write(source.fd, 3)
            source.gather()
            if drop:
                source.discard()
            source.run()
        assert seen == [(print, (Dut.row, 8), 3, 7)]
        source.close()


def commands(guest: Guest[Dut]) -> tuple[CommandSource, list[str]]:
    failures: list[str] = []
    core = guest.device.core

    def failed(_: CommandSource, error: Exception) -> None:
        failures.append(str(error))

    return CommandSource(core, lambda hook, *what: hook(*what), failed), failures


def test_a_command_socket_that_fails_is_told() -> None:
    with Guest(Dut) as guest:
        source, failures = commands(guest)
        os.write(source.client_fd, bytes(7))
        source.gather()
        assert len(failures) == 1
        source._theirs.shutdown(socket.SHUT_RDWR)
        source._respond(1, 0)
        source.gather()
        assert len(failures) == 3
        source.close()


def test_a_guest_that_waits_while_its_command_is_dropped_gets_all_ones() -> None:
    with Guest(Dut) as guest:
        source, failures = commands(guest)
        user_data = source.user_data(Dut.row)
        assert user_data == 0
        with socket.socket(fileno=os.dup(source.client_fd)) as client:
            for respond in (True, False):
                client.send(encode_command(IoCommand(True, 4, respond, user_data, 0, 1)))
            assert source.gather() == 2
            source.discard()
            assert decode_response(client.recv(64)) == (1 << 64) - 1
        assert failures == []
        assert source.gather() == 0
        source.close()


@pytest.mark.parametrize(
    ("repeats", "poisoned", "values"), [(True, False, [7, 8]), (False, False, [8]), (True, True, [8])]
)
def test_commands_that_a_dead_process_had_gathered_are_done_and_the_one_in_its_hook_if_that_may_be(
    repeats: bool, poisoned: bool, values: list[int]
) -> None:
    line = memoryview(bytearray(LINE))
    for at, value in ((1, 7), (2, 8)):  # the first of three is done
        line[at * SIZE : at * SIZE + SIZE] = encode_command(IoCommand(True, 4, False, 0, 0, value))
    line[SIZE + BEGUN] = 1
    done: list[int] = []
    with Guest(Dut) as guest:
        core = guest.device.core
        source = CommandSource(core, lambda _, __, command: done.append(command.data), print, (), line)
        source.user_data(Dut.row)
        assert source.again(repeats=repeats, poisoned=poisoned)
        source.run()
        assert done == values
        assert not any(line)
        assert not source.again(repeats=repeats, poisoned=False)
        source.close()


@pytest.mark.parametrize("poisoned", [False, True])
def test_rings_that_a_dead_process_had_gathered_ring_again_unless_they_kill(poisoned: bool) -> None:
    slot = new_slot()
    slot.counter.cast("Q")[0] = 3
    rung: list[int] = []
    with Guest(Dut) as guest:
        ring = lambda _, __, count: rung.append(count)  # noqa: E731
        source = EventSource(guest.device.core, (Dut.row, 8), print, ring, (), slot)
        assert source.again(repeats=False, poisoned=poisoned) is not poisoned
        source.run()
        assert rung == ([] if poisoned else [3])
        assert not any(slot.counter)
        source.close()


Make = Callable[[Guest[Dut], list[int], tuple[int, ...], EventSlot], EventSource[Any] | ShadowSource[Any]]


def by_event(guest: Guest[Dut], rung: list[int], fds: tuple[int, ...], slot: EventSlot) -> EventSource[Any]:
    return EventSource(guest.device.core, (Dut.row, 8), print, lambda *what: rung.append(what[2]), fds, slot)


def by_shadow(guest: Guest[Dut], rung: list[int], fds: tuple[int, ...], slot: EventSlot) -> ShadowSource[Any]:
    cell = memoryview(bytearray(4)).cast("I")
    return ShadowSource(guest.device.core, (Dut.row, 8), cell, print, lambda *what: rung.append(what[2]), fds, slot)


@pytest.mark.parametrize("make", [by_event, by_shadow])
def test_rings_that_wait_for_their_hook_outlive_a_process_that_is_killed_as_it_has_read_more(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, rung = new_slot(), list[int]()

    def dies(fd: int, counter: memoryview) -> int:
        eventfds.take(fd, counter)
        raise Killed

    with Guest(Dut) as guest:
        source = make(guest, rung, (), slot)
        os.eventfd_write(source.fd, 2)
        source.gather()
        os.eventfd_write(source.fd, 3)
        monkeypatch.setattr(sources, "take", dies)
        with pytest.raises(Killed):
            source.gather()
        monkeypatch.undo()
        successor = make(guest, rung, source.fds, slot)
        assert successor.again(repeats=True, poisoned=False)
        os.eventfd_write(source.fd, 4)
        successor.gather()
        assert (slot.older[0], slot.counter.cast("Q")[0]) == (5, 4)
        successor.run()
        assert rung == [9]
        assert not successor.again(repeats=True, poisoned=False)
        source.close()


def test_counts_that_are_too_large_for_a_slot_end_nothing() -> None:
    slot, rung = new_slot(), list[int]()
    with Guest(Dut) as guest:
        source = by_event(guest, rung, (), slot)
        for _ in range(3):
            os.eventfd_write(source.fd, 2**64 - 2)
            source.gather()
        source.run()
        assert rung == [3 * (2**64 - 2)]
        assert not any(slot.counter)
        assert not any(slot.older)
        source.close()


def test_notes_of_a_version_without_older_counts_are_taken_over() -> None:
    first = NotedRings()
    first.event(1).counter[0] = 7
    first.line(1)[0] = 8
    os.ftruncate(first.fd, os.fstat(first.fd).st_size - 8 * EVENTS)
    second = NotedRings(os.dup(first.fd))
    first.close()
    slot = second.event(1)
    assert (slot.counter[0], slot.older[0], second.line(1)[0]) == (7, 0, 8)
    slot.older[0] = 9
    assert not any(second.event(EVENTS).counter)
    second.close()


def test_a_command_socket_that_was_closed_has_no_commands_left() -> None:
    with Guest(Dut) as guest:
        source, failures = commands(guest)
        source._commands.append(SimpleNamespace(respond=True, user_data=9, offset=0, size=4))  # type: ignore[arg-type]
        source.close()
        source.run()
        assert failures == []


# -- system calls


def test_a_system_call_that_fails_is_an_error_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="fallocate") as refused_call:
        linux.fallocate(-1, 0, 0, 1)
    assert refused_call.value.errno == errno.EBADF
    with pytest.raises(OSError, match=r"mount nothing") as refused_call:
        linux.mount("nothing", os.fspath(tmp_path / "gone"))
    assert refused_call.value.errno in (errno.ENODEV, errno.EPERM, errno.ENOENT)
    with pytest.raises(OSError, match=r"unshare") as refused_call:
        linux.unshare(1)
    assert refused_call.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="io_setup"):
        linux.AioContext(-1)


def test_a_system_call_that_was_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [errno.EINTR, errno.EINTR, errno.ENOSPC]
    made: list[tuple[int, ...]] = []

    def call(*what: int) -> int:
        made.append(what)
        ctypes.set_errno(numbers[len(made) - 1])
        return -1

    monkeypatch.setattr(linux, "_libc", SimpleNamespace(fallocate=call))
    with pytest.raises(OSError, match="fallocate") as refused_call:
        linux.fallocate(5, 1, 2, 3)
    assert (refused_call.value.errno, made) == (errno.ENOSPC, [(5, 1, 2, 3)] * 3)


# -- streams


def test_a_stream_whose_reader_has_gone_still_gives_what_it_sent() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream("x")
    stream.take(ours.detach())
    theirs.sendall(b"last")
    stream._end_output()
    assert (stream.connected, bytes(stream.receive(9))) == (True, b"last")
    stream.close()
    theirs.close()


def test_the_end_of_the_last_way_is_the_end_of_the_stream() -> None:
    stream = Stream("x")
    stream.take(*os.pipe())
    stream._end_input()
    before = stream.connected
    stream._end_output()
    assert (before, stream.connected) == (True, False)
    stream.close()


def test_a_link_of_a_pty_that_has_gone_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/nowhere")
    pty = Pty(link)
    assert os.readlink(link) == pty.path
    pty.close()
    assert not link.is_symlink()
