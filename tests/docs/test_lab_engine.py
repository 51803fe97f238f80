"""The ring engine of the labs (docs/labs/engine.py) does what its data sheet says."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from bellwire.testing import Guest, conformance
from docs.documents import DOCS

RING, SOURCE, TARGET, ENTRIES = 0x1000, 0x4000, 0x8000, 8


def load() -> Any:
    spec = importlib.util.spec_from_file_location("engine", DOCS / "labs" / "engine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engine = load()
Engine, Cause, Error, Inject, State, Status = (
    getattr(engine, name) for name in ("Engine", "Cause", "Error", "Inject", "State", "Status")
)
TestEngine = conformance(Engine)


def started(**options: Any) -> Guest[Any]:
    """A guest with an empty ring, and the engine on."""
    guest: Guest[Any] = Guest(Engine, **options)
    guest.write(Engine.ring, RING)
    guest.write(Engine.entries, ENTRIES)
    guest.write(Engine.control, 1)
    return guest


def post(guest: Guest[Any], count: int, first: int = 0, length: int = 16) -> None:
    """Fill ``count`` descriptors, and ring."""
    for number in range(first, first + count):
        entry = number % ENTRIES
        guest.memory[SOURCE + 16 * entry : SOURCE + 16 * entry + 16] = bytes([number + 1] * 16)
        words = SOURCE + 16 * entry, TARGET + 16 * entry, length, State.POSTED
        engine.DESCRIPTOR.pack_into(guest.memory, RING + entry * engine.DESCRIPTOR.size, *words)
    guest.ring(Engine.tail, (first + count) % ENTRIES)


def states(guest: Guest[Any]) -> list[int]:
    places = range(RING, RING + ENTRIES * engine.DESCRIPTOR.size, engine.DESCRIPTOR.size)
    return [engine.DESCRIPTOR.unpack_from(guest.memory, place)[3] for place in places]


def test_it_copies_in_bursts_and_interrupts_once_for_each() -> None:
    with started(burst=2) as guest:
        post(guest, 5)
        assert guest.read(Engine.status) == Status.BUSY
        guest.advance(1)
        assert states(guest) == [State.COPIED] * 5 + [State.POSTED] * 3
        assert bytes(guest.memory[TARGET + 64 : TARGET + 80]) == bytes([5] * 16)
        assert guest.interrupts.total() == 3
        assert (guest.read(Engine.head), guest.read(Engine.status), guest.read(Engine.cause)) == (5, 0, Cause.DONE)


def test_the_ring_wraps() -> None:
    with started() as guest:
        post(guest, 6)
        guest.advance(1)
        post(guest, 5, first=6)
        guest.advance(1)
        assert guest.read(Engine.head) == 3
        assert bytes(guest.memory[TARGET + 32 : TARGET + 48]) == bytes([11] * 16)


def test_a_doorbell_means_nothing_while_it_is_off() -> None:
    with started() as guest:
        guest.write(Engine.control, 0)
        post(guest, 1)
        guest.advance(1)
        assert states(guest) == [State.POSTED] * ENTRIES
        assert guest.read(Engine.status) == 0


@pytest.mark.parametrize(
    ("entries", "tail", "length", "ring", "error"),
    [
        (6, 1, 16, RING, Error.RING),
        (ENTRIES, ENTRIES, 16, RING, Error.RING),
        (ENTRIES, 1, 0, RING, Error.LENGTH),
        (ENTRIES, 1, 4097, RING, Error.LENGTH),
        (ENTRIES, 1, 16, 1 << 40, Error.ADDRESS),
        (ENTRIES, 1, 16, (1 << 64) - 1, Error.ADDRESS),
    ],
)
def test_it_halts_where_it_cannot_copy(entries: int, tail: int, length: int, ring: int, error: int) -> None:
    with started() as guest:
        guest.write(Engine.ring, ring)
        guest.write(Engine.entries, entries)
        post(guest, 1, length=length)
        guest.ring(Engine.tail, tail)
        guest.advance(1)
        assert guest.read(Engine.error) == error
        assert guest.read(Engine.status) == Status.HALTED
        assert guest.read(Engine.cause) == Cause.ERROR
        assert guest.interrupts.total() == 1


def test_off_and_on_makes_it_forget_an_error() -> None:
    with started() as guest:
        guest.write(Engine.inject, Inject.ERROR)
        post(guest, 1)
        guest.advance(1)
        assert guest.read(Engine.error) == Error.INJECTED
        guest.write(Engine.control, 0)
        guest.write(Engine.control, 1)
        assert (guest.read(Engine.status), guest.read(Engine.error), guest.read(Engine.cause)) == (0, 0, 0)
        post(guest, 1)
        guest.advance(1)
        assert states(guest)[0] == State.COPIED


def test_it_forgets_a_burst_that_was_under_way_when_it_was_switched_off() -> None:
    with started() as guest:
        post(guest, 1)
        guest.write(Engine.control, 0)
        guest.write(Engine.control, 1)
        guest.advance(1)
        assert states(guest)[0] == State.POSTED
        assert guest.interrupts.total() == 0


def test_hung_it_neither_copies_nor_interrupts_until_it_is_switched_off() -> None:
    with started() as guest:
        guest.write(Engine.inject, Inject.HANG)
        post(guest, 1)
        guest.advance(1)
        post(guest, 1, first=1)
        guest.advance(1)
        assert guest.read(Engine.status) == Status.BUSY
        assert (states(guest)[0], guest.interrupts.total()) == (State.POSTED, 0)
        guest.write(Engine.control, 0)
        guest.write(Engine.control, 1)
        post(guest, 1)
        guest.advance(1)
        assert states(guest)[0] == State.COPIED


def test_a_lost_interrupt_is_lost_once() -> None:
    with started(burst=1) as guest:
        guest.write(Engine.inject, Inject.SILENCE)
        post(guest, 2)
        guest.advance(1)
        assert states(guest)[:2] == [State.COPIED] * 2
        assert guest.interrupts.total() == 1
        assert guest.read(Engine.inject) == Inject.NONE


def test_a_burst_goes_on_after_a_restore() -> None:
    with started() as before, Guest(Engine) as after:
        post(before, 1)
        after.memory[:] = before.memory
        after.restore(before.snapshot())
        after.advance(1)
        assert states(after)[0] == State.COPIED
