"""A machine that moves to another process's VMM while its guest runs; here both are in one process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.errors import MigrationError, StateError, VmmError
from bellwire_vmm.machine.boot import MicroGuest
from bellwire_vmm.machine.memory import PAGE
from bellwire_vmm.moving import Moved, Policy, Source, Target
from bellwire_vmm.moving.dirty import DirtyPages, in_pages, runs
from bellwire_vmm.moving.wire import Kind, Wire
from bellwire_vmm.vmm import Machine
from vmm.program import Program

pytestmark = pytest.mark.kvm

MIB = 1 << 20
COUNTER, STOP = 0x3_8000, 0x3_9000
# inc qword [COUNTER]; cmp byte [STOP], 0; jz back: counts until somebody writes to STOP
COUNT = (
    b"\x48\xff\x04\x25" + COUNTER.to_bytes(4, "little") + b"\x80\x3c\x25" + STOP.to_bytes(4, "little") + b"\0\x74\xee"
)
# rdx goes from 4 to 12 MiB in steps of a page and writes there, for ever
SCRIBBLE = b"\xba\0\0\x40\0" + b"\x48\xff\x02\x81\xc2\0\x10\0\0\x81\xfa\0\0\xc0\0\x72\xef\xeb\xe8"


def number(machine: Machine, address: int) -> int:
    return int.from_bytes(machine.memory.read(address, 8), "little")


@dataclass
class Ends:
    """Both ends of a move: what they have become, and the errors that ended them."""

    here: Machine
    there: Machine | None = None
    moved: Moved | None = None
    here_error: VmmError | None = None
    there_error: VmmError | None = None


def move(machine: Machine, other: Callable[[Target], Machine], policy: Policy = Policy()) -> Ends:  # noqa: B008
    """Run a machine and move it to the one that ``other`` makes; the errors of both ends are in what this returns."""
    ends, (left, right) = Ends(machine), socket.socketpair()

    def arrive() -> None:
        try:
            target = Target(right)
            try:
                ends.there = other(target)
                target.take(ends.there)
            finally:
                target.close()
        except VmmError as error:
            ends.there_error = error

    source = Source(machine, left, "", policy)

    def approach() -> None:
        try:
            source.approach()
        except VmmError as error:
            ends.here_error = error
        machine.stop()

    threads = [threading.Thread(target=each) for each in (arrive, approach)]
    for thread in threads:
        thread.start()
    assert not machine.resume(30).failure
    threads[1].join()
    try:
        if ends.here_error is None:
            ends.moved = source.finish()
    except VmmError as error:
        ends.here_error = error
    source.close()
    threads[0].join()
    return ends


@pytest.fixture
def other() -> Iterator[Callable[[Target], Machine]]:
    """A machine of the shape that a source tells."""
    with ExitStack() as stack:
        yield lambda target: stack.enter_context(Machine(target.shape["memory"], target.shape["cpus"]))


def test_a_guest_that_counts_goes_on_counting_there(machine: Machine, other: Callable[[Target], Machine]) -> None:
    machine.load(MicroGuest(COUNT + Program().leave().code))
    ends = move(machine, other)
    assert (ends.here_error, ends.there_error) == (None, None)
    assert ends.there is not None
    before = number(ends.there, COUNTER)
    assert before == number(machine, COUNTER) > 0
    ends.there.memory.write(STOP, b"\1")
    assert ends.there.resume(20).ok
    assert before <= number(ends.there, COUNTER) <= before + 1  # it may have looked at STOP last


def test_what_a_guest_writes_meanwhile_is_there_to_the_last_byte(
    machine: Machine, other: Callable[[Target], Machine]
) -> None:
    machine.load(MicroGuest(SCRIBBLE))
    ends = move(machine, other, Policy(pause=10))
    assert ends.there is not None
    assert ends.there.memory.read(0, 16 * MIB) == machine.memory.read(0, 16 * MIB)


def test_a_move_says_what_it_has_cost(machine: Machine, other: Callable[[Target], Machine]) -> None:
    machine.load(MicroGuest(COUNT + Program().leave().code))
    moved = move(machine, other).moved
    assert moved is not None
    assert moved.rounds[0].bytes > 0
    assert moved.state > 4096
    assert moved.bytes >= sum(each.bytes for each in moved.rounds) + moved.rest + moved.state
    assert 0 < moved.pause < 30


def test_a_guest_that_writes_too_fast_stays_and_goes_on(
    machine: Machine, other: Callable[[Target], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "_expected", lambda _: 2.0)
    machine.load(MicroGuest(SCRIBBLE))
    ends = move(machine, other, Policy(rounds=3))
    assert isinstance(ends.here_error, MigrationError)
    why = "the guest writes too fast: after 3 rounds, it would pause for 2.0 s, and at most 0.5 s are allowed"
    assert str(ends.here_error) == why
    assert str(ends.there_error) == "the source has closed the connection"
    before = machine.memory.read(4 * MIB, 8 * MIB)
    machine.resume(0.2)
    assert machine.memory.read(4 * MIB, 8 * MIB) != before


def test_a_target_of_another_shape_says_what_differs_and_the_guest_stays(machine: Machine) -> None:
    machine.load(MicroGuest(COUNT + Program().leave().code))
    with ExitStack() as stack:
        ends = move(machine, lambda _: stack.enter_context(Machine(8 * MIB)))
    why = f"memory: the state is of a machine with {16 * MIB}, this one has {8 * MIB}"
    assert isinstance(ends.there_error, StateError)
    assert str(ends.there_error) == why
    assert str(ends.here_error) == f"the target gives up: {why}"
    machine.memory.write(STOP, b"\1")
    assert machine.resume(20).ok


def test_a_target_that_goes_silent_in_the_pause_does_not_hold_the_guest(
    machine: Machine, other: Callable[[Target], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_all_and_says_nothing(target: Target, machine: Machine) -> None:
        target._wire.send(Kind.GOOD)
        target._receive(machine)
        target._wire.receive({})

    monkeypatch.setattr("bellwire_vmm.moving.source.LEAST_PATIENCE", 0.5)
    monkeypatch.setattr(Target, "take", takes_all_and_says_nothing)
    machine.load(MicroGuest(COUNT + Program().leave().code))
    ends = move(machine, other, Policy(pause=0.1))
    assert str(ends.here_error) == "the target has taken longer than 0.5 s"
    assert str(ends.there_error) == "the source gives up: the target has taken longer than 0.5 s"
    machine.memory.write(STOP, b"\1")
    assert machine.resume(20).ok


def test_a_limit_holds_for_an_answer_that_comes_byte_by_byte() -> None:
    left, right = socket.socketpair()
    wire, done = Wire(left, "target"), threading.Event()

    def drip() -> None:
        while not done.wait(0.05):
            right.send(b"G")

    thread = threading.Thread(target=drip)
    thread.start()
    wire.limit(0.2)
    with pytest.raises(MigrationError, match=r"the target has taken longer than 0\.2 s"):
        wire.expect_good()
    done.set()
    thread.join()
    wire.close()
    right.close()


def test_pages_that_the_vmm_writes_itself_count_as_written_once(machine: Machine) -> None:
    dirty = DirtyPages(machine)
    dirty.begin()
    machine.memory.write(0x5FFF, b"ab")  # as a device's DMA by message
    machine.memory.write(0x20_0000, b"c")
    assert dirty.collect() == [range(0x5000, 0x7000), range(0x20_0000, 0x20_1000)]
    assert dirty.collect() == []
    dirty.end()


@given(st.sets(st.integers(0, 200), max_size=40), st.sampled_from([4096, 8192, 65536, 1 << 21]))
def test_pages_of_any_size_become_runs_of_addresses(pages: set[int], size: int) -> None:
    bits = sum(1 << page for page in pages)
    bitmap = bits.to_bytes(-(-max(bits.bit_length(), 1) // 64) * 8, "little")
    found = [at for run in runs(in_pages(bitmap, size)) for at in range(run.start, run.stop, PAGE)]
    assert found == [at for page in sorted(pages) for at in range(page * size, page * size + size, PAGE)]
