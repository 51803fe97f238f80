from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import Link, fd_count
from protocol.guest import BOTH, PAGE, TOP, add, mapping, maps, remove, unmapping
from vfio_user import (
    Capabilities,
    Command,
    DmaFlags,
    DmaMap,
    DmaTable,
    DmaUnmap,
    ProtocolError,
    VfioUserError,
    dma,
)
from vfio_user import (
    mapping as mapping_module,
)

# -- DMA_MAP and DMA_UNMAP


def test_mapping_and_unmapping_are_answered_as_the_text_says(link: Link, memfd: Callable[[int], int]) -> None:
    assert link.ok(Command.DMA_MAP, mapping(0x10000, PAGE), fds=[memfd(PAGE)]) == b""
    assert [(found.start, found.size) for found in link.session.dma] == [(0x10000, PAGE)]
    assert link.ok(Command.DMA_UNMAP, unmapping(0x10000, PAGE)) == unmapping(0x10000, PAGE)
    assert len(link.session.dma) == 0
    assert link.device.calls.count("dma_changed") == 2


def test_the_server_lets_go_of_fd_and_memory_at_the_unmap(link: Link, memfd: Callable[[int], int]) -> None:
    fd = memfd(PAGE)
    fds, inode = fd_count(), f" {os.fstat(fd).st_ino} "
    link.ok(Command.DMA_MAP, mapping(0, PAGE), fds=[fd])
    assert inode in maps()
    link.ok(Command.DMA_UNMAP, unmapping(0, PAGE))
    assert inode not in maps()
    assert fd_count() == fds


def test_all_memory_is_let_go_of_when_the_session_closes(link: Link, memfd: Callable[[int], int]) -> None:
    fd = memfd(4 * PAGE)
    for page in range(4):
        link.ok(Command.DMA_MAP, mapping(page * PAGE, PAGE, offset=page * PAGE), fds=[fd])
    link.session.close()
    assert f" {os.fstat(fd).st_ino} " not in maps()
    assert len(link.session.dma) == 0


@pytest.mark.parametrize(
    ("address", "size"),
    [(0x4000, 0x2000), (0x4000, 0x1000), (0x5000, 0x1000), (0x3000, 0x2000), (0x5000, 0x2000), (0x2000, 0x8000)],
)
def test_an_overlap_is_refused_with_eexist(link: Link, address: int, size: int) -> None:
    link.ok(Command.DMA_MAP, mapping(0x4000, 0x2000))
    assert link.refused(Command.DMA_MAP, mapping(address, size)) == errno.EEXIST
    assert len(link.session.dma) == 1


def test_neighbours_do_not_overlap(link: Link) -> None:
    for address in (0x4000, 0x3000, 0x5000):
        link.ok(Command.DMA_MAP, mapping(address, 0x1000))
    assert [found.start for found in link.session.dma] == [0x3000, 0x4000, 0x5000]


THREE = ((0x4000, 0x2000), (0x6000, 0x1000), (0x8000, 0x2000))


@pytest.fixture
def three(link: Link, memfd: Callable[[int], int]) -> Link:
    for address, size in THREE:
        link.ok(Command.DMA_MAP, mapping(address, size), fds=[memfd(size)])
    link.device.calls.clear()
    return link


@pytest.mark.parametrize(
    ("address", "size", "dropped"),
    [
        (0x4000, 0x2000, (0,)),
        (0x4000, 0x3000, (0, 1)),
        (0x3000, 0x5000, (0, 1)),
        (0, 1 << 63, (0, 1, 2)),
        (PAGE, TOP - PAGE, (0, 1, 2)),
    ],
)
def test_an_unmap_drops_every_map_that_lies_wholly_in_its_range(
    three: Link, address: int, size: int, dropped: tuple[int, ...]
) -> None:
    assert three.ok(Command.DMA_UNMAP, unmapping(address, size)) == unmapping(address, size)
    left = [each for number, each in enumerate(THREE) if number not in dropped]
    assert [(found.start, found.size) for found in three.session.dma] == left
    assert three.session.dma.total == sum(size for _, size in left)
    assert [call for call in three.device.calls if "before_reply" not in call] == ["before_unmap", "dma_changed"]


def test_the_flag_all_drops_every_map(three: Link) -> None:
    assert three.ok(Command.DMA_UNMAP, unmapping(0, 0, flags=2)) == unmapping(0, 0, flags=2)
    assert (len(three.session.dma), three.session.dma.total) == (0, 0)
    assert three.device.calls.count("dma_changed") == 1


@pytest.mark.parametrize(("address", "size"), [(0x3000, 0x1000), (0x7000, 0x1000), (0xA000, 0x1000), (0, PAGE)])
def test_an_unmap_of_what_is_not_mapped_succeeds_and_disturbs_nobody(three: Link, address: int, size: int) -> None:
    assert three.ok(Command.DMA_UNMAP, unmapping(address, size)) == unmapping(address, size)
    assert len(three.session.dma) == 3
    assert not {"before_unmap", "dma_changed"} & set(three.device.calls)
    assert not any("refused" in call for call in three.device.calls)


def test_all_of_nothing_is_unmapped_too(link: Link) -> None:
    assert link.ok(Command.DMA_UNMAP, unmapping(0, 0, flags=2)) == unmapping(0, 0, flags=2)


@pytest.mark.parametrize(
    ("address", "size"),
    [(0x4000, 0x1000), (0x5000, 0x1000), (0x4000, 0x5000), (0x5000, 0x8000), (0x4800, 0x800), (0x5000, 0x4000)],
)
def test_an_unmap_that_would_cut_a_map_is_refused_and_changes_nothing(three: Link, address: int, size: int) -> None:
    assert three.refused(Command.DMA_UNMAP, unmapping(address, size)) == errno.EINVAL
    assert [(found.start, found.size) for found in three.session.dma] == list(THREE)
    assert "before_unmap" not in three.device.calls


def test_what_was_unmapped_can_be_mapped_again(link: Link) -> None:
    for _ in range(2):
        link.ok(Command.DMA_MAP, mapping(0x4000, 0x1000))
        link.ok(Command.DMA_UNMAP, unmapping(0x4000, 0x1000))


def test_the_very_top_of_memory_can_be_mapped(link: Link) -> None:
    link.ok(Command.DMA_MAP, mapping(TOP - PAGE, PAGE))


BAD_MAPS = {
    "size 0": mapping(0, 0),
    "address wraps around": mapping(TOP - PAGE, 2 * PAGE),
    "offset wraps around": mapping(0, PAGE, offset=TOP - PAGE),
    "offset beyond a file's range": mapping(0, PAGE, offset=(1 << 63) - PAGE + 1),
    "address unaligned": mapping(1, PAGE),
    "size unaligned": mapping(0, PAGE + 1),
    "no rights": mapping(0, PAGE, flags=0),
    "unknown flag": mapping(0, PAGE, flags=0x13),
    "by mmap without an fd": mapping(0, PAGE, flags=BOTH | DmaFlags.BY_MMAP),
    "by file I/O without an fd": mapping(0, PAGE, flags=BOTH | DmaFlags.BY_FILE_IO),
    "argsz": mapping(0, PAGE, argsz=31),
    "short": mapping(0, PAGE)[:31],
}


@pytest.mark.parametrize("payload", BAD_MAPS.values(), ids=BAD_MAPS.keys())
def test_a_map_that_cannot_be_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(Command.DMA_MAP, payload) == errno.EINVAL
    assert len(link.session.dma) == 0


BAD_UNMAPS = {
    "argsz": (unmapping(0, PAGE, argsz=23), errno.EINVAL),
    "short": (unmapping(0, PAGE)[:23], errno.EINVAL),
    "dirty bitmap": (unmapping(0, PAGE, flags=1), errno.ENOTSUP),
    "no size": (unmapping(0, 0), errno.EINVAL),
    "wraps around": (unmapping(2 * PAGE, TOP - PAGE), errno.EINVAL),
    "all, and some": (unmapping(0, PAGE, flags=2), errno.EINVAL),
    "all, from somewhere": (unmapping(PAGE, 0, flags=2), errno.EINVAL),
    "all, and a dirty bitmap": (unmapping(0, 0, flags=3), errno.ENOTSUP),
}


@pytest.mark.parametrize(("payload", "error"), BAD_UNMAPS.values(), ids=BAD_UNMAPS.keys())
def test_an_unmap_that_cannot_be_is_refused(link: Link, payload: bytes, error: int) -> None:
    assert link.refused(Command.DMA_UNMAP, payload) == error


def test_only_one_fd_can_stand_behind_a_map(link: Link, memfd: Callable[[int], int]) -> None:
    assert link.refused(Command.DMA_MAP, mapping(0, PAGE), fds=[memfd(PAGE)] * 2) == errno.EINVAL


def test_max_dma_maps_is_a_limit(table: DmaTable) -> None:
    for page in range(8):
        add(table, page * PAGE, PAGE)
    with pytest.raises(VfioUserError, match=r"max_dma_maps \(8\)") as refusal:
        add(table, 8 * PAGE, PAGE)
    assert refusal.value.errno == errno.ENOSPC


def test_files_are_mapped_as_long_as_the_kernel_has_mappings_to_spare(
    table: DmaTable, memfd: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dma, "MOST_MAPPINGS", 2)
    fd = memfd(PAGE)
    for page in (0, 2):
        add(table, page * PAGE, PAGE, fd)
    with pytest.raises(VfioUserError, match="more than 2 ranges with a file") as refusal:
        add(table, 4 * PAGE, PAGE, fd)
    assert refusal.value.errno == errno.ENOSPC
    add(table, 4 * PAGE, PAGE)
    remove(table, 0, PAGE)
    add(table, 6 * PAGE, PAGE, fd)
    assert table.total == 3 * PAGE


def test_a_limit_of_the_kernels_that_is_out_of_sight_is_taken_to_be_the_usual_one(tmp_path: Path) -> None:
    assert mapping_module._most_mappings(tmp_path / "max_map_count") == 65530 // 8 * 7
    (tmp_path / "max_map_count").write_text("800\n")
    assert mapping_module._most_mappings(tmp_path / "max_map_count") == 700


def test_pgsizes_is_what_maps_are_aligned_to() -> None:
    table = DmaTable(pgsizes=0x200000)
    with pytest.raises(ProtocolError, match="page size 2097152"):
        add(table, PAGE, PAGE)
    add(table, 0x200000, 0x200000)


def test_the_defaults_are_those_of_the_text() -> None:
    assert (Capabilities().max_dma_maps, Capabilities().pgsizes) == (65535, 4096)


# -- encode and decode

u64 = st.integers(0, TOP - 1)


@given(st.builds(DmaMap, st.integers(0, 15).map(DmaFlags), u64, u64, u64))
def test_a_map_is_read_as_it_was_written(request: DmaMap) -> None:
    assert DmaMap.unpack(memoryview(request.pack())) == request


@given(st.builds(DmaUnmap, u64, u64).filter(lambda it: 0 < it.size <= TOP - it.address) | st.just(DmaUnmap(0, 0)))
def test_an_unmap_is_read_as_it_was_written(request: DmaUnmap) -> None:
    assert DmaUnmap.unpack(memoryview(request.pack())) == request
