"""nvme's optional I/O commands: Compare, Verify, Write Uncorrectable, Copy."""

from __future__ import annotations

import itertools
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.bundled.nvme import lost_blocks
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.nvme.lost_blocks import LostBlocks
from bellwire.bundled.nvme.status import Status
from nvme.driver import PAGE, Done, Driver, Fields, Queues, TestMachine, prps, transfer

READ, WRITE, COMPARE, COPY = IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.COPY
VERIFY, LOSE, ZERO = IoOpcode.VERIFY, IoOpcode.WRITE_UNCORRECTABLE, IoOpcode.WRITE_ZEROES
USUAL: Fields = {"nsid": 1, "prp1": 0x2000}


@pytest.fixture
def queues(on_image: Driver) -> Queues:
    return on_image.create_queues()


def span(queues: Queues, opcode: int, block: int, count: int, nsid: int = 1) -> Done:
    """A command that transfers nothing."""
    return queues.do(opcode, nsid=nsid, dwords=(block & 0xFFFF_FFFF, block >> 32, count - 1))


@pytest.mark.parametrize("offset", [0, 512])
def test_compare_says_whether_all_is_the_same(queues: Queues, image: Path, offset: int) -> None:
    memory = queues.driver.memory
    place = queues.driver.allocate(4 * PAGE) + offset
    memory[place : place + 2 * PAGE] = image.read_bytes()[5 * 512 : 5 * 512 + 2 * PAGE]
    assert transfer(queues, COMPARE, place, 5, 16).status == 0
    memory[place + 2 * PAGE - 1] ^= 1
    assert transfer(queues, COMPARE, place, 5, 16).code == Status.COMPARE_FAILURE
    assert transfer(queues, COMPARE, place, 5, 15).status == 0


def test_compare_of_scattered_pages(queues: Queues, image: Path) -> None:
    memory = queues.driver.memory
    pages = [queues.driver.allocate(2 * PAGE) for _ in range(3)]
    for number, page in enumerate(pages):
        memory[page : page + PAGE] = image.read_bytes()[number * PAGE : (number + 1) * PAGE]
    prp1, prp2 = prps(queues.driver, pages)
    assert queues.do(COMPARE, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, 23)).status == 0
    memory[pages[2]] ^= 1
    assert queues.do(COMPARE, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, 23)).code == Status.COMPARE_FAILURE


@pytest.mark.same_device("has cut the image short behind the controller's back")
def test_verify_reads_what_is_more_than_a_transfer(queues: Queues, image: Path) -> None:
    assert span(queues, VERIFY, 0, 2048).status == 0
    os.truncate(image, 1024 * 512)
    assert span(queues, VERIFY, 0, 1024).status == 0
    assert span(queues, VERIFY, 0, 2048).code == Status.UNRECOVERED_READ_ERROR


@pytest.mark.parametrize("opcode", [COMPARE, VERIFY, LOSE])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"dwords": (2048,)}, Status.LBA_OUT_OF_RANGE),
        ({"dwords": (2047, 0, 1)}, Status.LBA_OUT_OF_RANGE),
        ({"dwords": (0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF)}, Status.LBA_OUT_OF_RANGE),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0xFFFF_FFFF}, Status.INVALID_NAMESPACE),
        ({"flags": 0x40}, Status.INVALID_FIELD),
    ],
)
def test_what_cannot_be_addressed_is_refused(queues: Queues, opcode: int, fields: Fields, status: Status) -> None:
    assert queues.do(opcode, **(USUAL | fields)).code == status
    assert span(queues, VERIFY, 0, 2048).status == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prp1": 0x2001}, Status.INVALID_PRP_OFFSET),
        ({"prp1": 1 << 50}, Status.DATA_TRANSFER_ERROR),
        ({"dwords": (0, 0, 2047), "prp2": 1 << 50}, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_compare_with_memory_that_is_not_there_is_refused(queues: Queues, fields: Fields, status: Status) -> None:
    assert queues.do(COMPARE, **(USUAL | fields)).code == status


@pytest.mark.parametrize("opcode", [READ, COMPARE, VERIFY])
def test_a_block_marked_uncorrectable_cannot_be_read(queues: Queues, opcode: IoOpcode) -> None:
    page = queues.driver.allocate(PAGE)
    assert span(queues, LOSE, 100, 4).status == 0
    assert transfer(queues, opcode, page, 103, 2).code == Status.UNRECOVERED_READ_ERROR
    assert transfer(queues, READ, page, 96, 4).status == 0
    assert transfer(queues, READ, page, 104, 4).status == 0


@pytest.mark.parametrize("opcode", [WRITE, ZERO])
@pytest.mark.parametrize("durable", [0, 1 << 30])
def test_a_block_that_was_marked_uncorrectable_is_healed_by_a_write(
    queues: Queues, opcode: IoOpcode, durable: int
) -> None:
    page = queues.driver.allocate(PAGE)
    assert span(queues, LOSE, 100, 4).status == 0
    assert queues.do(opcode, nsid=1, prp1=page, dwords=(101, 0, 0 | durable)).status == 0
    assert transfer(queues, READ, page, 101, 1).status == 0
    assert transfer(queues, READ, page, 100, 1).code == Status.UNRECOVERED_READ_ERROR
    assert transfer(queues, READ, page, 102, 1).code == Status.UNRECOVERED_READ_ERROR


def test_memory_has_uncorrectable_blocks_too(driver: Driver) -> None:
    queues = driver.create_queues()
    page = driver.allocate(PAGE)
    assert span(queues, LOSE, 8, 1).status == 0
    assert transfer(queues, READ, page, 8, 1).code == Status.UNRECOVERED_READ_ERROR
    assert transfer(queues, WRITE, page, 8, 1).status == 0
    assert transfer(queues, READ, page, 8, 1).status == 0


def test_uncorrectable_blocks_here_and_there_run_out(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_blocks, "MOST_RANGES", 4)
    assert [span(queues, LOSE, 2 * number, 1).code for number in range(5)] == [0, 0, 0, 0, Status.WRITE_FAULT]
    assert span(queues, LOSE, 1, 1).status == 0


def copy(queues: Queues, target: int, *sources: tuple[int, int], control: int = 0) -> Done:
    page = queues.driver.allocate(PAGE)
    for number, (start, count) in enumerate(sources):
        struct.pack_into("<8xQH14x", queues.driver.memory, page + 32 * number, start, count - 1)
    dwords = (target & 0xFFFF_FFFF, target >> 32, len(sources) - 1 | control)
    return queues.do(COPY, nsid=1, prp1=page, dwords=dwords)


@pytest.mark.parametrize("control", [0, 1 << 30])
def test_copy_puts_ranges_one_after_the_other(queues: Queues, image: Path, control: int) -> None:
    image.write_bytes(random.Random(3).randbytes(1 << 20))
    before = image.read_bytes()
    assert copy(queues, 1000, (3, 1), (500, 16), (0, 2), control=control).status == 0
    after = image.read_bytes()
    expected = before[3 * 512 : 4 * 512] + before[500 * 512 : 516 * 512] + before[: 2 * 512]
    assert after[1000 * 512 : 1019 * 512] == expected
    assert after[: 1000 * 512] + after[1019 * 512 :] == before[: 1000 * 512] + before[1019 * 512 :]


@pytest.mark.parametrize(
    ("target", "sources", "control", "status"),
    [
        (0, [(8, 8)], 1 << 8, Status.INVALID_FIELD),  # another descriptor format
        (0, [(8, 8)], 1 << 26, Status.INVALID_FIELD),  # protection information
        (0, [(4, 8)], 0, Status.INVALID_FIELD),  # over itself
        (2047, [(0, 2)], 0, Status.LBA_OUT_OF_RANGE),
        (0, [(2048, 1)], 0, Status.LBA_OUT_OF_RANGE),
        (0, [(100, 1), ((1 << 64) - 1, 1)], 0, Status.LBA_OUT_OF_RANGE),
        ((1 << 64) - 1, [(0, 1)], 0, Status.LBA_OUT_OF_RANGE),
        (0, [(1024, 1024)] * 9, 0, Status.COMMAND_SIZE_LIMIT_EXCEEDED),
        (0, [(1024, 1)] * 128, 1 << 7, Status.COMMAND_SIZE_LIMIT_EXCEEDED),  # 256 ranges
        (200, [(100, 4)], 0, Status.UNRECOVERED_READ_ERROR),
    ],
)
def test_a_copy_that_cannot_be_changes_nothing(
    queues: Queues, image: Path, target: int, sources: list[tuple[int, int]], control: int, status: Status
) -> None:
    assert span(queues, LOSE, 103, 1).status == 0
    before = image.read_bytes()
    assert copy(queues, target, *sources, control=control).code == status
    assert image.read_bytes() == before


def test_a_copy_has_as_many_ranges_and_blocks_as_identify_says(driver: Driver) -> None:
    queues = driver.create_queues()
    assert copy(queues, 8192, (0, 8192)).status == 0
    assert copy(queues, 8192, (0, 8191), (0, 2)).code == Status.COMMAND_SIZE_LIMIT_EXCEEDED
    assert copy(queues, 8192, *[(number, 1) for number in range(128)]).status == 0
    assert copy(queues, 8192, *[(0, 1)] * 127, (0, 1), (0, 1)).code == Status.COMMAND_SIZE_LIMIT_EXCEEDED


def test_a_copy_may_end_where_its_source_begins_and_the_other_way_round(queues: Queues) -> None:
    assert copy(queues, 100, (104, 4)).status == 0
    assert copy(queues, 104, (100, 4)).status == 0
    assert copy(queues, 101, (104, 4)).code == Status.INVALID_FIELD
    assert copy(queues, 107, (104, 4)).code == Status.INVALID_FIELD


def test_a_copy_heals_what_it_writes(queues: Queues) -> None:
    assert span(queues, LOSE, 100, 2).status == 0
    assert copy(queues, 100, (0, 2)).status == 0
    assert span(queues, VERIFY, 100, 2).status == 0


def test_identify_says_what_a_copy_may_have(on_image: Driver) -> None:
    assert struct.unpack_from("<HIB", on_image.identify(0x00, 1), 74) == (8192, 8192, 127)
    assert on_image.identify(0x01)[534] == 1


@pytest.mark.same_device("has made the disk read-only behind the controller's back")
def test_commands_that_may_change_a_read_only_namespace_do_not(on_image: Driver, image: Path) -> None:
    assert isinstance(on_image.machine, TestMachine)
    on_image.machine.guest.device.controller.namespaces.existing(1).disk.readonly = True
    queues = on_image.create_queues()
    assert span(queues, LOSE, 0, 1).code == Status.WRITE_PROTECTED
    assert copy(queues, 0, (8, 1)).code == Status.WRITE_PROTECTED


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20)), max_size=30))
def test_lost_blocks_are_a_set_of_blocks(steps: list[tuple[bool, int, int]]) -> None:
    lost, model = LostBlocks(), set[int]()
    for add, start, count in steps:
        blocks = range(start, start + count)
        if add:
            assert lost.add(start, count)
            model |= set(blocks)
        else:
            lost.remove(start, count)
            model -= set(blocks)
        assert {block for first, size in lost.ranges for block in range(first, first + size)} == model
        assert lost.first(start, count) == min(model & set(blocks), default=None)
        ranges = lost.ranges
        assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(ranges)), "they touch"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4000), st.integers(1, 40)), max_size=60), st.integers(1, 4))
def test_lost_blocks_never_are_more_stretches_than_the_limit(steps: list[tuple[bool, int, int]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lost_blocks, "MOST_RANGES", most)
        lost = LostBlocks()
        for add, start, count in steps:
            if add:
                lost.add(start, count)
            else:
                lost.remove(start, count)
                assert lost.first(start, count) is None
            assert len(lost) <= most


def test_1024_ranges_of_lost_blocks_are_kept() -> None:
    lost = LostBlocks((2 * number, 1) for number in range(1024))
    assert (len(lost), lost.add(4000, 1), lost.add(1, 1), len(lost)) == (1024, False, True, 1023)
    assert lost.add(4000, 1)
    lost.remove(1, 1)
    assert len(lost) == 1024, "only the longer part of what is split stays"
    lost.clear()
    assert (len(lost), lost.first(0, 4096)) == (0, None)
