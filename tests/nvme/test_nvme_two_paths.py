"""nvme's fast path does to memory, disk and counters what its slow path does, whatever the guest writes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Driver, Queues, TestMachine
from nvme.hostile import leave

pytestmark = pytest.mark.slow

MOST = 16  # commands of a batch
SHARE = 16 * PAGE
"""Each command has so much memory, and as much of the disk, to itself: the two paths may differ in the order."""
BLOCKS = MOST * SHARE >> 9
DATA = 0x10_0000
LISTS = DATA + MOST * SHARE

PLAIN = st.fixed_dictionaries(
    {
        "opcode": st.sampled_from([IoOpcode.READ, IoOpcode.WRITE]),
        "flags": st.sampled_from([0, 4]),
        "nsid": st.just(1),
        "into": st.sampled_from([0, 512, PAGE - 512, PAGE - 4]),
        "count": st.one_of(st.just(8), st.integers(1, 80)),
        "first": st.sampled_from([0, 3]),
        "pages": st.permutations(range(1, 16)),
        "in_a_row": st.booleans(),
        "stray": st.none(),
        "list_at": st.sampled_from([0, PAGE - 8 * 15]),
    }
)
"""Pages in any order, of which the first ones count."""
ODD = st.one_of(
    st.fixed_dictionaries({"opcode": st.sampled_from([IoOpcode.VERIFY, 0x7F])}),
    st.fixed_dictionaries({"flags": st.sampled_from([1, 0x40])}),
    st.fixed_dictionaries({"nsid": st.sampled_from([0, 2])}),
    st.fixed_dictionaries({"into": st.sampled_from([2, 1])}),
    st.fixed_dictionaries({"count": st.just(1 << 16)}),
    st.fixed_dictionaries({"first": st.sampled_from([BLOCKS, 1 << 32, (1 << 64) - 1])}),
    st.fixed_dictionaries(
        {
            "count": st.integers(9, 80),
            "stray": st.tuples(
                st.integers(0, 4), st.sampled_from([4, 512, MEMORY, MEMORY - 256, 1 << 63, (1 << 64) - PAGE])
            ),
        }
    ),
    st.fixed_dictionaries({"list_at": st.sampled_from([PAGE - 8, 4])}),
)
TRANSFERS = st.one_of(PLAIN, st.builds(lambda plain, odd: plain | odd, PLAIN, ODD))


class Outcome(NamedTuple):
    """What can be seen of a batch."""

    statuses: dict[int, int]
    memory: bytes
    disk: bytes
    counters: tuple[int, ...]


class Rig:
    """A controller whose fast path can be turned off."""

    def __init__(self, guest: Guest[Nvme]) -> None:
        self._guest = guest
        self._driver = Driver(TestMachine(guest))
        self._driver.enable()
        self._queues: Queues = self._driver.create_queues(size=64)
        self._content = random.Random(1).randbytes(MOST * SHARE)

    def play(self, transfers: list[dict[str, Any]], *, fast: bool) -> Outcome:
        """Execute them from the same memory and disk, on one path or the other."""
        guest, disk = self._guest, self._guest.device.controller.namespaces[1].disk
        counters = guest.device.controller.logs.counters
        counters.reads = counters.writes = counters.sectors_read = counters.sectors_written = 0
        disk.write([memoryview(self._content)], 0)
        guest.memory[DATA:LISTS] = self._content[::-1]
        cids = [self._put(number, **transfer) for number, transfer in enumerate(transfers)]
        with mock.patch.object(AtOnce, "transfer", AtOnce.transfer if fast else leave):
            self._queues.ring()
            done = self._queues.wait(*cids)
        after = bytearray(len(self._content))
        disk.read([after], 0)
        moved = (counters.reads, counters.writes, counters.sectors_read, counters.sectors_written)
        statuses = {number: each.status for number, each in enumerate(done)}
        return Outcome(statuses, bytes(guest.memory[DATA:LISTS]), bytes(after), moved)

    def _put(
        self, number: int, *, into: int, first: int, count: int, pages: list[int], in_a_row: bool,
        stray: tuple[int, int] | None, list_at: int, **head: int,
    ) -> int:  # fmt: skip
        base, where = DATA + number * SHARE, LISTS + number * PAGE + list_at
        listed = [base + page * PAGE for page in (range(1, 16) if in_a_row else pages)]
        if stray is not None:
            listed[stray[0]] = stray[1]
        self._guest.memory[where : where + 8 * 15] = struct.pack("<15Q", *listed)
        prp2 = listed[0] if into % PAGE + (count << 9) <= 2 * PAGE else where
        block = (number * SHARE >> 9) + first
        dwords = (block & 0xFFFF_FFFF, block >> 32 & 0xFFFF_FFFF, count - 1)
        return self._queues.put(prp1=base + into, prp2=prp2, dwords=dwords, **head)


@pytest.fixture(scope="module", params=["memory", "image"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    path: Path = tmp_path_factory.mktemp("paths") / "disk.img"
    where: dict[str, Any] = {"image": str(path)} if request.param == "image" else {}
    with Guest(Nvme, memory=MEMORY, size=BLOCKS << 9, **where) as guest:
        yield Rig(guest)


@given(transfers=st.lists(TRANSFERS, min_size=1, max_size=MOST))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_paths_do_the_same(rig: Rig, transfers: list[dict[str, Any]]) -> None:
    assert rig.play(transfers, fast=True) == rig.play(transfers, fast=False)
