"""What a manager holds, written so that it outlives the manager: whenever that is killed, the next one finds it."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bellwired.manager import holder as holders
from bellwired.manager.holder import Holder
from bellwired.workers import parcel as parcels
from bellwired.workers import wire
from bellwired.workers.parcel import FULL, About, Parcel
from bellwired.workers.wire import Drop, Keep, WireError

Held = list[tuple[str, str, list[int]]]
"""Key and note of each entry, and the inodes of its files."""


def file() -> int:
    return os.memfd_create("kept", os.MFD_CLOEXEC)


def held(holder: Holder) -> Held:
    found: Held = []
    for message, fds in holder.bequest():
        left = [os.fstat(fd).st_ino for fd in fds]
        for key, note, count in message.entries:
            found.append((key, note, left[:count]))
            del left[:count]
    return found


def next_one(parcel: Parcel) -> Held:
    """What the next manager has, from a parcel that it only reads."""
    holder = Holder("it")
    holder.unpack(parcel)
    found = held(holder)
    holder.leave()
    return found


def with_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@pytest.fixture
def parcel() -> Iterator[Parcel]:
    made = Parcel()
    yield made
    made.close()


Change = tuple[str, int]
CHANGES = st.lists(st.tuples(st.sampled_from(("keep", "drop", "again")), st.integers(0, 5)), max_size=30)


@given(CHANGES)
def test_the_next_manager_has_what_this_one_has_after_each_change(changes: list[Change]) -> None:
    async def work() -> None:
        parcel, holder = Parcel(), Holder("it")
        holder.save(parcel)
        for what, number in changes:
            if what == "keep":
                holder.heard(Keep([(f"{number}", "{}", number)]), [file() for _ in range(number)])
            elif what == "drop":
                holder.heard(Drop([f"{number}"]), [])
            else:
                holder._write_again()
            assert next_one(parcel) == held(holder)
        holder.close()
        assert next_one(parcel) == []
        parcel.close()

    with_a_loop(work)


@pytest.mark.parametrize("taken_off", range(4))
def test_a_kill_while_all_is_written_again_changes_nothing(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch, taken_off: int
) -> None:
    discard, times = wire.discard, [taken_off]

    def until_killed(sock: Any) -> None:
        if not times[0]:
            raise KeyboardInterrupt
        times[0] -= 1
        discard(sock)

    async def work() -> None:
        holder = Holder("it")
        holder.save(parcel)
        for message, count in ((Keep([("a", "{}", 1)]), 1), (Keep([("b", "{}", 1)]), 1), (Keep([("a", "1", 1)]), 1)):
            holder.heard(message, [file() for _ in range(count)])
        holder.heard(Drop(["b"]), [])
        before = held(holder)
        monkeypatch.setattr(wire, "discard", until_killed)
        with pytest.raises(KeyboardInterrupt):
            holder._write_again()
        assert next_one(parcel) == before
        holder.leave()

    with_a_loop(work)


def test_a_change_that_was_written_and_not_taken_off_the_workers_socket_may_be_read_twice(parcel: Parcel) -> None:
    async def work() -> None:
        holder = Holder("it")
        holder.save(parcel)
        kept = file()
        for _ in range(2):
            holder.heard(Keep([("a", "{}", 1)]), [os.dup(kept)])
        assert next_one(parcel) == [("a", "{}", [os.fstat(kept).st_ino])]
        os.close(kept)
        holder.close()

    with_a_loop(work)


def test_a_descriptor_that_was_dropped_is_closed_soon(parcel: Parcel) -> None:
    async def work() -> None:
        holder = Holder("it")
        holder.save(parcel)
        there, kept = os.pipe()
        holder.heard(Keep([("a", "{}", 0), ("b", "{}", 1)]), [kept])
        holder.heard(Drop(["b"]), [])
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(there, ended.set)
        async with asyncio.timeout(10):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(there)
        os.close(there)
        holder.close()

    with_a_loop(work)


def test_more_changes_than_a_socket_holds_are_written_together(parcel: Parcel) -> None:
    async def work() -> None:
        holder = Holder("it")
        holder.save(parcel)
        for number in range(5 * FULL):
            holder.heard(Keep([(f"{number}", "x" * 100, number % 2)]), [file() for _ in range(number % 2)])
        assert parcel.length <= FULL
        assert not holder.unsaved
        assert next_one(parcel) == held(holder)
        holder.close()

    with_a_loop(work)


def test_as_much_as_may_be_held_has_room(parcel: Parcel) -> None:
    async def work() -> None:
        holder = Holder("it")
        kept = file()
        for number in range(0, holders.MOST_FDS - 240, 240):
            holder.heard(Keep([(f"fds {number}", "", 240)]), [os.dup(kept) for _ in range(240)])
        holder.heard(Keep([(f"{number}", "x" * 700_000, 0) for number in range(10)]), [])
        assert not holder.spoilt
        holder.save(parcel)
        assert not holder.unsaved
        assert len(next_one(parcel)) == len(held(holder))
        os.close(kept)
        holder.close()

    with_a_loop(work)


def test_without_room_nothing_is_left_behind_until_all_can_be_written(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        holder = Holder("it")
        holder.save(parcel)
        holder.heard(Keep([("a", "{}", 0)]), [])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        monkeypatch.setattr(parcels, "LARGEST", 1)  # each message needs a descriptor
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            holder.heard(Keep([("b", "{}", 0)]), [])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert holder.unsaved
        assert next_one(parcel) == []
        holder._write_again()
        assert not holder.unsaved
        assert next_one(parcel) == held(holder) != []
        holder.close()

    with_a_loop(work)


def test_what_the_manager_says_of_the_device_is_found_again(parcel: Parcel) -> None:
    async def work() -> None:
        holder = Holder("it", lambda: About("1.2", {"pid": 7}, 3, 12.5))
        holder.save(parcel)
        holder.heard(Keep([("a", "{}", 0)]), [])
        holder.note()
        assert Holder("it").unpack(parcel) == About("1.2", {"pid": 7}, 3, 12.5)
        holder.close()

    with_a_loop(work)


@pytest.mark.parametrize("junk", [b"{", b'{"type": "Ask", "number": 1, "what": "stop"}', b'{"type": "Keep"}'])
def test_what_is_no_message_of_a_parcel_is_refused(parcel: Parcel, junk: bytes) -> None:
    parcel.entrance.send(junk)
    holder = Holder("it")
    with pytest.raises(WireError):
        holder.unpack(parcel)
    assert not holder.holds
