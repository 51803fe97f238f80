from __future__ import annotations

import errno
import gc
import mmap
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import Link, fd_count
from protocol.guest import PAGE, READ, TOP, WRITE, add, mapping, maps, remove, view
from vfio_user import (
    Command,
    DmaFault,
    DmaTable,
    VfioUserError,
    dma,
)
from vfio_user import (
    mapping as mapping_module,
)

# -- the file behind a map


@pytest.mark.parametrize(("offset", "size"), [(0x800, PAGE), (0x10, 0x20), (PAGE - 1, 2), (PAGE + 0x800, 2 * PAGE)])
def test_a_map_may_begin_within_a_page(memfd: Callable[[int], int], offset: int, size: int) -> None:
    fd = memfd(4 * PAGE)
    data = bytes(number // 16 % 251 for number in range(4 * PAGE))
    os.pwrite(fd, data, 0)
    mapped = mapping_module.Mapping(fd, offset, size, write=True)
    assert mapped.view() == data[offset : offset + size]
    mapped.view()[-1] ^= 0xFF
    assert os.pread(fd, 1, offset + size - 1)[0] == data[offset + size - 1] ^ 0xFF
    mapped.detach()


@pytest.mark.parametrize(("size", "offset"), [(PAGE - 1, 0), (0, 0), (2 * PAGE, PAGE + 1), (PAGE, 1 << 40)])
def test_a_file_that_is_too_small_is_refused(link: Link, memfd: Callable[[int], int], size: int, offset: int) -> None:
    assert link.refused(Command.DMA_MAP, mapping(0, PAGE, offset=offset), fds=[memfd(size)]) == errno.EINVAL
    assert "too few" in str(link.device.refusals[0])


def test_an_fd_that_cannot_be_mapped_is_refused(link: Link, eventfd: Callable[[], int]) -> None:
    before = fd_count()
    fd = eventfd()
    assert link.refused(Command.DMA_MAP, mapping(0, PAGE), fds=[fd]) == errno.ENODEV
    assert fd_count() == before + 1


def test_a_file_open_for_reading_is_not_mapped_for_writing(link: Link, memfd: Callable[[int], int]) -> None:
    fd = os.open(f"/proc/self/fd/{memfd(PAGE)}", os.O_RDONLY)
    assert link.refused(Command.DMA_MAP, mapping(0, PAGE), fds=[fd]) == errno.EACCES
    link.ok(Command.DMA_MAP, mapping(0, PAGE, flags=READ), fds=[fd])
    os.close(fd)


def test_the_clients_memory_is_shared_not_copied(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(2 * PAGE)
    add(table, 0x8000, PAGE, fd, offset=PAGE)
    view(table, 0x8010, 4, write=True)[:] = b"bell"
    assert os.pread(fd, 4, PAGE + 0x10) == b"bell"
    os.pwrite(fd, b"ring", PAGE + 0x10)
    assert bytes(view(table, 0x8010, 4)) == b"ring"


def test_the_offset_in_the_file_need_not_be_a_multiple_of_a_page(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(2 * PAGE)
    os.pwrite(fd, b"odd", 0x123)
    add(table, 0, PAGE, fd, offset=0x123)
    assert bytes(view(table, 0, 3)) == b"odd"


def test_parts_of_huge_pages_are_mapped_and_let_go_of(table: DmaTable, huge_file: int) -> None:
    size = os.fstat(huge_file).st_blksize
    for offset, length in ((0, 0xA0000), (0xC0000, 0x40000), (size - PAGE, PAGE)):  # as QEMU cuts up a PC's memory
        add(table, offset, length, huge_file, offset=offset)
        view(table, offset, 4, write=True)[:] = offset.to_bytes(4, "little")
    stale = view(table, 0xC0000, 4)
    assert stale != bytes(4)
    with mmap.mmap(huge_file, size) as file:
        for offset in (0, 0xC0000, size - PAGE):
            assert int.from_bytes(file[offset : offset + 4], "little") == offset
    table.clear()
    assert stale == bytes(4)


# -- rights


def test_a_read_only_map_gives_views_that_cannot_be_written(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE), flags=READ)
    assert view(table, 0, PAGE).readonly
    with pytest.raises(DmaFault, match="not mapped it for writing") as fault:
        table.segments(0, 8, write=True)
    assert fault.value.errno == errno.EPERM


def test_a_view_for_reading_cannot_be_written_even_if_the_map_can(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE))
    assert view(table, 0, 8).readonly
    assert not view(table, 0, 8, write=True).readonly


def test_a_write_only_map_is_not_read(table: DmaTable) -> None:
    add(table, 0, PAGE, flags=WRITE)
    with pytest.raises(DmaFault, match="not mapped it for reading"):
        table.segments(0, 8, write=False)


# -- segments


def test_a_range_in_one_map_is_one_segment(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0x1000, PAGE, memfd(PAGE))
    ((address, size, found),) = table.segments(0x1FF0, 0x10, False)
    assert (address, size, found is not None and len(found)) == (0x1FF0, 0x10, 0x10)


def test_a_range_across_maps_is_a_segment_of_each(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(PAGE)
    add(table, 0x1000, PAGE, fd)
    add(table, 0x2000, PAGE)
    add(table, 0x3000, PAGE, fd)
    found = table.segments(0x1800, 0x2000, False)
    assert [(part.address, part.size, part.view is None) for part in found] == [
        (0x1800, 0x800, False),
        (0x2000, 0x1000, True),
        (0x3000, 0x800, False),
    ]


def test_a_fault_says_where_it_begins_and_how_far_it_goes(table: DmaTable) -> None:
    add(table, PAGE, PAGE)
    with pytest.raises(DmaFault) as fault:
        list(table.segments(2 * PAGE - 8, 16, False))
    assert (fault.value.address, fault.value.size) == (2 * PAGE, 8)


@pytest.mark.parametrize(
    ("address", "size"), [(0, 8), (0xFF8, 16), (0x2FF8, 16), (0x3000, 1), (0x5FF8, 16), (TOP - 8, 16), (0x1000, TOP)]
)
def test_a_range_that_is_not_mapped_all_through_is_a_fault(table: DmaTable, address: int, size: int) -> None:
    add(table, 0x1000, 0x2000)
    add(table, 0x5000, 0x1000)
    table.segments(0x1000, 8, False)  # the last hit must not answer for others
    with pytest.raises(DmaFault, match="mapped nothing there") as fault:
        table.segments(address, size, False)
    assert fault.value.errno == errno.EFAULT


def test_a_range_across_maps_needs_the_right_in_each(table: DmaTable) -> None:
    add(table, 0x1000, PAGE)
    add(table, 0x2000, PAGE, flags=READ)
    assert len(table.segments(0x1800, 0x1000, False)) == 2
    with pytest.raises(DmaFault):
        table.segments(0x1800, 0x1000, True)


def test_the_last_hit_is_forgotten_with_its_map(table: DmaTable) -> None:
    add(table, 0, PAGE)
    table.segments(0, 8, False)
    remove(table, 0, PAGE)
    with pytest.raises(DmaFault):
        table.segments(0, 8, False)


@given(st.data())
def test_a_table_behaves_as_a_map_of_pages(data: st.DataObject) -> None:
    table = DmaTable()
    pages: dict[int, int] = {}
    ranges: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 20))):
        start, size = data.draw(st.integers(0, 15)), data.draw(st.integers(1, 4))
        if data.draw(st.booleans()):
            expected = not any(page in pages for page in range(start, start + size))
            if expected:
                ranges[start] = size
                pages |= dict.fromkeys(range(start, start + size), start)
            assert attempt(add, table, start * PAGE, size * PAGE) == expected
        else:
            touched = {pages[page] for page in range(start, start + size) if page in pages}
            expected = all(start <= owner and owner + ranges[owner] <= start + size for owner in touched)
            if expected:
                pages = {page: owner for page, owner in pages.items() if owner not in touched}
                ranges = {owner: pages for owner, pages in ranges.items() if owner not in touched}
            assert attempt(remove, table, start * PAGE, size * PAGE) == expected
        at, length = data.draw(st.integers(0, 18)), data.draw(st.integers(1, 6))
        reachable = all(page in pages for page in range(at, at + length))
        assert attempt(table.segments, at * PAGE, length * PAGE, True) == reachable
    assert [(found.start, found.size) for found in table] == [(s * PAGE, n * PAGE) for s, n in sorted(ranges.items())]


def attempt(action: Callable[..., object], *arguments: object) -> bool:
    try:
        action(*arguments)
    except VfioUserError:
        return False
    return True


# -- one view over several maps


def test_a_view_over_several_maps_is_the_memory_of_each(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(4 * PAGE)
    for page, offset in enumerate((3, 0, 2)):  # not as the file has them
        add(table, page * PAGE, PAGE, fd, offset=offset * PAGE)
    found = table.whole(PAGE - 2, PAGE + 4, write=True)
    assert found is not None
    found[:] = b"ab" + bytes(PAGE) + b"yz"
    assert os.pread(fd, 2, 4 * PAGE - 2) == b"ab"
    assert os.pread(fd, 2, 2 * PAGE) == b"yz"
    os.pwrite(fd, b"!", 7)
    assert found[2 + 7] == ord("!")


def test_a_view_of_one_map_needs_no_mapping_of_its_own(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(4 * PAGE)
    add(table, 0, 4 * PAGE, fd)
    found = table.whole(8, 3 * PAGE, write=True)
    assert found is not None
    assert maps().count(f" {os.fstat(fd).st_ino} ") == 1


def test_a_view_over_maps_to_be_read_cannot_be_written(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(2 * PAGE)
    add(table, 0, PAGE, fd)
    add(table, PAGE, PAGE, fd, flags=READ)
    found = table.whole(0, 2 * PAGE, write=False)
    assert found is not None
    assert found.readonly
    with pytest.raises(DmaFault, match="not mapped it for writing"):
        table.whole(0, 2 * PAGE, write=True)


def test_a_view_over_several_maps_shows_zeros_once_one_of_them_has_gone(
    table: DmaTable, memfd: Callable[[int], int]
) -> None:
    fd = memfd(3 * PAGE)
    for page in range(3):
        add(table, page * PAGE, PAGE, fd, offset=page * PAGE)
    stale, other = table.whole(0, 2 * PAGE, write=True), table.whole(PAGE, 2 * PAGE, write=True)
    assert stale is not None
    assert other is not None
    stale[:] = other[:] = b"x" * 2 * PAGE
    remove(table, 0, PAGE)
    stale[:] = b"astray" + bytes(2 * PAGE - 6)
    assert os.pread(fd, 3 * PAGE, 0) == b"x" * 3 * PAGE
    assert other == b"x" * 2 * PAGE
    table.clear()
    assert other == bytes(2 * PAGE)
    assert f" {os.fstat(fd).st_ino} " not in maps()


def test_its_addresses_are_given_back_with_the_last_view(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(2 * PAGE)
    for page in (1, 0):
        add(table, (1 - page) * PAGE, PAGE, fd, offset=page * PAGE)
    before = maps().count(f" {os.fstat(fd).st_ino} ")
    found = table.whole(0, 2 * PAGE, write=True)
    assert maps().count(f" {os.fstat(fd).st_ino} ") == before + 2
    del found
    gc.collect()
    assert maps().count(f" {os.fstat(fd).st_ino} ") == before


def test_what_is_not_shared_has_no_such_view(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE))
    add(table, PAGE, PAGE)
    assert table.whole(0, 2 * PAGE, write=True) is None
    assert table.whole(PAGE, 8, write=True) is None


def test_a_map_that_begins_within_a_page_of_its_file_is_not_joined(
    table: DmaTable, memfd: Callable[[int], int]
) -> None:
    fd = memfd(3 * PAGE)
    add(table, 0, PAGE, fd, offset=100)
    add(table, PAGE, PAGE, fd)
    assert table.whole(0, 2 * PAGE, write=True) is None


def test_pieces_of_huge_pages_are_not_joined(table: DmaTable, huge_file: int) -> None:
    add(table, 0, PAGE, huge_file)
    add(table, PAGE, PAGE, huge_file, offset=2 * PAGE)
    assert table.whole(0, 2 * PAGE, write=True) is None


def test_a_view_of_too_many_pieces_is_refused(memfd: Callable[[int], int]) -> None:
    table, fd = DmaTable(), memfd(PAGE)
    for page in range(257):
        add(table, page * PAGE, PAGE, fd)
    assert table.whole(0, 256 * PAGE, write=True) is not None
    with pytest.raises(VfioUserError, match="257 pieces"):
        table.whole(0, 257 * PAGE, write=True)
    table.clear()


def test_views_of_too_many_pieces_together_are_refused_while_they_are_kept(
    table: DmaTable, memfd: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dma, "MOST_JOINED", 6)
    fd = memfd(PAGE)
    for page in range(8):
        add(table, page * PAGE, PAGE, fd)
    first, second = table.whole(0, 4 * PAGE, write=True), table.whole(4 * PAGE, 2 * PAGE, write=True)
    with pytest.raises(VfioUserError, match="8 pieces of memory joined, at most 6"):
        table.whole(6 * PAGE, 2 * PAGE, write=True)
    assert table.whole(0, 4 * PAGE, write=True) is not None  # the same once more costs nothing
    del first
    assert table.whole(6 * PAGE, 2 * PAGE, write=True) is not None
    assert second is not None


# -- views that outlive their map


def test_a_view_that_outlives_its_map_shows_zeros_and_harms_nobody(
    table: DmaTable, memfd: Callable[[int], int]
) -> None:
    fd = memfd(PAGE)
    os.pwrite(fd, b"secret", 0)
    add(table, 0, PAGE, fd)
    stale = view(table, 0, 6, write=True)
    remove(table, 0, PAGE)
    assert stale == bytes(6)
    stale[:] = b"astray"
    assert os.pread(fd, 6, 0) == b"secret"


def test_addresses_are_given_back_with_the_last_view(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE))
    (mapped,) = table
    assert mapped.mapping is not None
    place = f"{mapped.mapping.address:x}-"
    stale = view(table, 0, 6)
    del mapped
    remove(table, 0, PAGE)
    assert place in maps()
    del stale
    gc.collect()
    assert place not in maps()


def test_without_views_the_addresses_are_given_back_at_once(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE))
    (place,) = (f"{each.mapping.address:x}-" for each in table if each.mapping)
    assert place in maps()
    remove(table, 0, PAGE)
    assert place not in maps()


def test_without_views_nothing_is_laid_over_what_goes(
    table: DmaTable, memfd: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[int] = []
    monkeypatch.setattr(mapping_module, "_lay_over", lambda address, _: laid.append(address))
    for address in (0, PAGE):
        add(table, address, PAGE, memfd(PAGE))
    remove(table, 0, PAGE)
    table.clear()
    assert laid == []


def test_where_the_kernel_has_no_memory_to_lay_over_a_view_the_rest_is_let_go_of_all_the_same(
    table: DmaTable, memfd: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = memfd(PAGE)
    os.pwrite(fd, b"kept", 0)
    for address in (0, PAGE, 2 * PAGE):
        add(table, address, PAGE, fd)
    stale = view(table, PAGE, 4)

    def refuse(*_: object) -> int:
        raise VfioUserError("mmap: Cannot allocate memory", errno.ENOMEM)

    with monkeypatch.context() as patch:
        patch.setattr(mapping_module, "_map", refuse)
        table.clear()
    assert (len(table), table.total, bytes(stale)) == (0, 0, b"kept")


def test_a_view_of_a_file_that_its_owner_cuts_short_is_not_touched_by_unmapping(
    table: DmaTable, memfd: Callable[[int], int]
) -> None:
    fd = memfd(PAGE)
    add(table, 0, PAGE, fd)
    os.ftruncate(fd, 0)
    remove(table, 0, PAGE)
