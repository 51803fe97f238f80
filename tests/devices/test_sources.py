"""Where rings arrive at the device's end, by themselves, and what a process that has died had taken there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire import Bar, PciDevice
from bellwire.serve import sources
from bellwire.serve.noted import EVENTS, LINE, EventSlot, NotedRings, new_slot
from bellwire.serve.sources import BEGUN, CommandSource, EventSource, ShadowSource
from bellwire.testing import Guest
from killing import Killed
from vfio_user import IoCommand, eventfds
from vfio_user.ioregionfd import SIZE, decode_response, encode_command


class Dut(PciDevice, vendor=0x1234, device=0x5678, class_code=0xFF0000):
    mmio = Bar(0, size=4096)
    row = mmio.ioregion(0x100, 16, bell=4, posted=True)


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


@pytest.mark.parametrize(("repeats", "drop", "values"), [(True, False, [7, 8]), (False, False, [8]), (True, True, [8])])
def test_commands_that_a_dead_process_had_gathered_are_done_and_the_one_in_its_hook_if_that_may_be(
    repeats: bool, drop: bool, values: list[int]
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
        assert source.again(repeats=repeats, drop=drop)
        source.run()
        assert done == values
        assert not any(line)
        assert not source.again(repeats=repeats, drop=False)
        source.close()


@pytest.mark.parametrize("drop", [False, True])
def test_rings_that_a_dead_process_had_gathered_ring_again_unless_they_kill(drop: bool) -> None:
    slot = new_slot()
    slot.counter.cast("Q")[0] = 3
    rung: list[int] = []
    with Guest(Dut) as guest:
        ring = lambda _, __, count: rung.append(count)  # noqa: E731
        source = EventSource(guest.device.core, (Dut.row, 8), print, ring, (), slot)
        assert source.again(repeats=False, drop=drop) is not drop
        source.run()
        assert rung == ([] if drop else [3])
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
        assert successor.again(repeats=True, drop=False)
        os.eventfd_write(source.fd, 4)
        successor.gather()
        assert (slot.older[0], slot.counter.cast("Q")[0]) == (5, 4)
        successor.run()
        assert rung == [9]
        assert not successor.again(repeats=True, drop=False)
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
