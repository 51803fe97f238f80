"""nvme against models and hostile guests: data integrity, snapshots, and whatever a guest may make up."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.nvme.prp import PAGE, extents
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.testing import Guest
from nvme.driver import Driver, TestMachine, transfer
from nvme.hostile import INPUTS, hostile_guest, leave
from pieces import cut

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE
MEMORY = 4 << 20
BLOCKS = 2048


class DiskModel(RuleBasedStateMachine):
    """What is read, written, copied, zeroed, discarded and lost, over resets and moves, against a bytearray."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()

    @initialize(block_size=st.sampled_from([512, 4096]))
    def plug(self, block_size: int) -> None:
        self.shift = block_size.bit_length() - 1
        folder = self.stack.enter_context(TemporaryDirectory())
        self.guest = self.stack.enter_context(
            Guest(Nvme, memory=MEMORY, image=f"{folder}/disk", size=BLOCKS << self.shift, block_size=block_size)
        )
        self.model = bytearray(BLOCKS << self.shift)
        self.lost: set[int] = set()
        self.start()

    def start(self) -> None:
        self.driver = Driver(TestMachine(self.guest))
        self.driver.enable()
        self.queues = self.driver.create_queues(1, 8)
        self.buffer = self.driver.allocate(256 << 10)

    @rule(
        start=st.integers(0, BLOCKS - 1),
        count=st.integers(1, 32),
        offset=st.integers(0, 1023),
        seed=st.binary(max_size=9),
    )
    def write(self, start: int, count: int, offset: int, seed: bytes) -> None:
        count = min(count, BLOCKS - start)
        size = count << self.shift
        content = ((seed or b"?") * size)[:size]
        at = self.buffer + 4 * offset
        self.driver.memory[at : at + size] = content
        assert transfer(self.queues, WRITE, at, start, count, shift=self.shift).status == 0
        self.model[start << self.shift : (start + count) << self.shift] = content
        self.lost -= set(range(start, start + count))

    @rule(start=st.integers(0, BLOCKS - 1), count=st.integers(1, 32), offset=st.integers(0, 1023))
    def read(self, start: int, count: int, offset: int) -> None:
        count = min(count, BLOCKS - start)
        at = self.buffer + 4 * offset
        done = transfer(self.queues, READ, at, start, count, shift=self.shift)
        if self.lost & set(range(start, start + count)):
            assert done.code == Status.UNRECOVERED_READ_ERROR
            return
        assert done.status == 0
        size = count << self.shift
        assert self.driver.memory[at : at + size] == self.model[start << self.shift :][:size]

    @rule(start=st.integers(0, BLOCKS - 1), count=st.integers(1, 64), discard=st.booleans())
    def zero(self, start: int, count: int, discard: bool) -> None:
        count = min(count, BLOCKS - start)
        if discard:
            struct.pack_into("<IIQ", self.driver.memory, self.buffer, 0, count, start)
            done = self.queues.do(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=self.buffer, dwords=(0, 4))
        else:
            done = self.queues.do(IoOpcode.WRITE_ZEROES, nsid=1, dwords=(start, 0, count - 1))
            self.lost -= set(range(start, start + count))
        assert done.status == 0
        self.model[start << self.shift : (start + count) << self.shift] = bytes(count << self.shift)

    @rule(start=st.integers(0, BLOCKS - 1), count=st.integers(1, 64))
    def lose(self, start: int, count: int) -> None:
        count = min(count, BLOCKS - start)
        done = self.queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(start, 0, count - 1))
        assert done.status == 0
        self.lost |= set(range(start, start + count))

    @rule(
        place=st.integers(0, BLOCKS - 1),
        sources=st.lists(st.tuples(st.integers(0, BLOCKS - 33), st.integers(1, 32)), min_size=1, max_size=5),
    )
    def copy(self, place: int, sources: list[tuple[int, int]]) -> None:
        for number, (start, count) in enumerate(sources):
            struct.pack_into("<8xQH14x", self.driver.memory, self.buffer + 32 * number, start, count - 1)
        done = self.queues.do(IoOpcode.COPY, nsid=1, prp1=self.buffer, dwords=(place, 0, len(sources) - 1))
        read = [block for start, count in sources for block in range(start, start + count)]
        written = range(place, place + len(read))
        if written.stop > BLOCKS:
            assert done.code == Status.LBA_OUT_OF_RANGE
        elif self.lost.isdisjoint(read) and set(read).isdisjoint(written):
            assert done.status == 0
            data = [self.model[block << self.shift : (block + 1) << self.shift] for block in read]
            self.model[place << self.shift : written.stop << self.shift] = b"".join(data)
            self.lost -= set(written)
        else:
            assert done.code in (Status.UNRECOVERED_READ_ERROR, Status.INVALID_FIELD)

    @rule(cuts=st.lists(st.integers(1, MEMORY // PAGE - 1), max_size=40) | st.just(range(128)))
    def cut_the_memory_into_other_maps(self, cuts: Sequence[int]) -> None:
        memory = cut(self.guest, cuts)
        self.driver.memory = self.driver.machine.memory = memory

    @rule()
    def reset(self) -> None:
        self.driver.disable()
        self.start()

    @rule()
    def restore_the_snapshot_of_now(self) -> None:
        core = self.guest.device.core
        core.restore(core.snapshot())

    @invariant()
    def nothing_is_broken(self) -> None:
        assert not self.driver.csts & 2

    def teardown(self) -> None:
        self.stack.close()


TestDiskModel = pytest.mark.slow(DiskModel.TestCase)
TestDiskModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_commands_under_way_are_done_again_by_whoever_takes_the_state_over(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 << 10))
    with Guest(Nvme, memory=MEMORY, image=str(image)) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        queues = driver.create_queues()
        page = driver.allocate(PAGE)
        driver.memory[page : page + 5] = b"first"
        cid = queues.put(WRITE, nsid=1, prp1=page, dwords=(0,))
        queues.ring()
        snapshot = guest.device.core.snapshot()
        driver.memory[page : page + 5] = b"again"
        guest.device.core.restore(snapshot)
        assert [done.cid for done in queues.wait(cid)] == [cid]
        guest.advance()
        assert queues.reap() == []
    assert image.read_bytes()[:5] == b"again"


@given(
    prp1=st.integers(0, (1 << 62) - 1).map(lambda dword: 4 * dword),
    prp2=st.integers(0, (1 << 61) - 1).map(lambda qword: 8 * qword),
    length=st.integers(1, 1 << 20),
    seed=st.integers(),
)
def test_whatever_a_list_says_its_walk_ends_and_makes_up_the_length(
    prp1: int, prp2: int, length: int, seed: int
) -> None:
    chance = random.Random(seed)
    fetched = 0

    def fetch(_: int, size: int) -> bytes:
        nonlocal fetched
        fetched += size
        return struct.pack(f"<{size // 8}Q", *(chance.getrandbits(52) * PAGE for _ in range(size // 8)))

    with contextlib.suppress(CommandError):  # a second page that starts within a page
        found = extents(prp1, prp2, length, fetch)
        assert sum(size for _, size in found) == length
        assert all(size > 0 for _, size in found)
    assert fetched <= 8 * 260


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(INPUTS)
def test_a_hostile_guest_gets_statuses_or_breaks_its_own_controller(drawn: tuple[list[Any], str, bool]) -> None:
    hostile_guest(drawn)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(INPUTS)
def test_so_it_is_on_the_slow_path_alone(drawn: tuple[list[Any], str, bool]) -> None:
    with mock.patch.object(AtOnce, "transfer", leave):
        hostile_guest(drawn)
