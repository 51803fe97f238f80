"""The manager's half of a ledger: it keeps what it is given, counts it, and lets go of it."""

from __future__ import annotations

import os
import socket

import pytest

from bellwired.manager.holder import MOST_BYTES, MOST_FDS, Holder
from bellwired.workers import wire
from bellwired.workers.ledger import batches, unpacked
from bellwired.workers.wire import Drop, Inherit, Keep, WireError
from vfio_user import Kept


def fds(count: int) -> list[int]:
    return [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(count)]


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


@pytest.fixture
def holder() -> Holder:
    return Holder("it")


def test_what_is_kept_is_bequeathed_in_its_order(holder: Holder) -> None:
    one, two, three = fds(3)
    holder.heard(Keep([("b", "{}", 1), ("a", '{"x": 1}', 2)]), [one, two, three])
    assert holder.bequest() == [(Inherit([("b", "{}", 1), ("a", '{"x": 1}', 2)], last=True), [one, two, three])]
    holder.close()
    assert all(map(closed, (one, two, three)))
    assert not holder.holds


def test_a_client_that_nobody_serves_any_more_reads_an_end_of_file(holder: Holder) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"unread")
    holder.heard(Keep([("client", "{}", 1)]), [ours.detach()])
    with theirs:
        holder.close()
        assert theirs.recv(1) == b""


def test_an_entry_replaces_the_one_with_its_key_and_closes_its_descriptors(holder: Holder) -> None:
    one, two = fds(2)
    holder.heard(Keep([("a", "{}", 1)]), [one])
    holder.heard(Keep([("a", "{}", 1)]), [two])
    assert closed(one)
    assert holder.descriptors == 1
    holder.heard(Drop(["a", "unknown"]), [])
    assert closed(two)
    assert (holder.holds, holder.descriptors) == (False, 0)


def test_more_descriptors_than_a_message_takes_go_in_several(holder: Holder) -> None:
    for number in range(wire.MOST_FDS + 1):
        holder.heard(Keep([(str(number), "", 1)]), fds(1))
    messages = holder.bequest()
    assert [len(fds) for _, fds in messages] == [wire.MOST_FDS, 1]
    assert [message.last for message, _ in messages] == [False, True]
    holder.close()


def test_too_many_descriptors_or_bytes_spoil_it_until_the_client_has_left(holder: Holder) -> None:
    (kept,) = fds(1)
    holder.heard(Keep([("a", "{}", 1)]), [kept])
    holder.heard(Keep([("b", "x" * MOST_BYTES, 0)]), [])
    assert closed(kept)
    assert not holder.holds
    assert "too much" in holder.spoilt
    (late,) = fds(1)
    holder.heard(Keep([("c", "{}", 1)]), [late])
    assert closed(late)
    holder.heard(Drop([]), [])
    holder.heard(Keep([("d", "{}", 0)]), [])
    assert holder.holds


def test_no_device_has_more_than_its_share_of_descriptors_held(holder: Holder) -> None:
    step = 240
    for number in range(MOST_FDS // step + 1):
        holder.heard(Keep([(str(number), "", step)]), fds(step))
    assert holder.spoilt
    assert holder.descriptors == 0


def test_lost_descriptors_spoil_it(holder: Holder) -> None:
    (one,) = fds(1)
    holder.heard(Keep([("a", "{}", 2)]), [one])
    assert closed(one)
    assert "lost" in holder.spoilt


def test_a_drop_that_brings_descriptors_closes_them(holder: Holder) -> None:
    (one,) = fds(1)
    holder.heard(Drop(["a"]), [one])
    assert closed(one)


def test_a_worker_puts_as_many_entries_into_a_message_as_it_takes() -> None:
    entries = tuple(Kept(str(number), {}, (3, 4, 5)) for number in range(100))
    found = batches(entries)
    assert [entry for batch in found for entry in batch] == list(entries)
    assert all(sum(len(entry.fds) for entry in batch) <= wire.MOST_FDS for batch in found)
    assert len(found) == 2


def test_a_successor_refuses_an_estate_that_lacks_descriptors() -> None:
    (one,) = fds(1)
    with pytest.raises(WireError, match="1 descriptors came, 2 were expected"):
        unpacked([("a", "{}", 2)], [one])
    assert closed(one)
