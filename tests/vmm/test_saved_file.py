"""The file of a saved machine: what is written is read again, and what is damaged is refused before anything else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.setup import Setup
from bellwire_vmm.errors import StateError, VmmError
from bellwire_vmm.machine.memory import PAGE, GuestMemory
from bellwire_vmm.saved import file, sections
from bellwire_vmm.saved.machine import from_json, to_json

MIB = 1 << 20
SIZE = 2 * MIB
SHAPE = {"memory": SIZE, "cpus": 1, "tsc_khz": 0, "guest": "bell"}
STATE = {"cpu0.regs": b"registers", "slot 1 data": bytes(100), "empty": b""}
HEADER = 64  # bytes; zeros follow
PLACES = (0, 5 * PAGE, 6 * PAGE, MIB, SIZE - PAGE)

contents = st.dictionaries(st.text("abc .0", max_size=9), st.binary(max_size=40), max_size=6)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture
def saved(memory: GuestMemory, tmp_path: Path) -> bytes:
    """A file of a few pages."""
    for place in PLACES:
        memory.write(place, b"page at " + place.to_bytes(8, "little"))
    memory.write(2 * PAGE, bytes(PAGE))  # used, and all zeros
    with open(tmp_path / "saved", "w+b") as made:
        file.write(made.fileno(), memory, SHAPE, STATE)
    return (tmp_path / "saved").read_bytes()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[bytes], file.SavedFile]]:
    """A file with these bytes, opened as a saved machine."""
    with open(tmp_path / "opened", "w+b") as made:

        def open_it(content: bytes) -> file.SavedFile:
            os.ftruncate(made.fileno(), 0)
            os.pwrite(made.fileno(), content, 0)
            return file.SavedFile(made.fileno())

        yield open_it


Opened = Callable[[bytes], file.SavedFile]


def test_what_was_written_is_read_and_all_other_memory_is_zeros(
    saved: bytes, opened: Opened, memory: GuestMemory
) -> None:
    found = opened(saved)
    assert (found.shape, found.state, found.memory) == (SHAPE, STATE, SIZE)
    other = GuestMemory(SIZE)
    found.load(other)
    assert other.read(0, SIZE) == memory.read(0, SIZE)
    other.close()


@contextmanager
def restored(found: file.SavedFile, *, shared: bool = False) -> Iterator[GuestMemory]:
    """New memory with the RAM of a file; a device maps it if it is ``shared``."""
    memory = GuestMemory(SIZE)
    try:
        if shared:
            memory.share()
        found.load(memory)
        yield memory
    finally:
        memory.close()


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_was_never_used_takes_no_room(memory: GuestMemory, tmp_path: Path, shared: bool) -> None:
    with open(tmp_path / "empty", "w+b") as made:
        assert file.write(made.fileno(), memory, SHAPE, STATE).memory == 0
        with restored(file.SavedFile(made.fileno()), shared=shared) as other:
            assert list(other.stretches()) == []


def test_memory_that_a_device_maps_has_a_copy(saved: bytes, opened: Opened, memory: GuestMemory) -> None:
    with restored(opened(saved), shared=True) as copy:
        assert os.pread(copy.share(), SIZE, 0) == memory.read(0, SIZE)


def test_clones_write_to_pages_of_their_own(saved: bytes, opened: Opened, memory: GuestMemory) -> None:
    found = opened(saved)
    with restored(found) as one, restored(found) as other:
        for place in (5 * PAGE, 9 * PAGE):  # in the file, and not in it
            one.write(place, b"its own")
        assert one.read(5 * PAGE, 7) == one.read(9 * PAGE, 7) == b"its own"
        assert other.read(0, SIZE) == memory.read(0, SIZE)
    with restored(found) as later:
        assert later.read(0, SIZE) == memory.read(0, SIZE)


def test_a_clone_is_saved_as_any_machine(saved: bytes, opened: Opened, tmp_path: Path) -> None:
    with restored(opened(saved)) as clone, open(tmp_path / "again", "w+b") as made:
        clone.write(9 * PAGE, b"new")
        assert file.write(made.fileno(), clone, SHAPE, STATE).memory == (len(PLACES) + 1) * PAGE
        expected = clone.read(0, SIZE)
        with restored(file.SavedFile(made.fileno())) as second:
            assert second.read(0, SIZE) == expected


def test_memory_that_is_mapped_copy_on_write_goes_to_no_device(
    saved: bytes, opened: Opened, memory: GuestMemory
) -> None:
    with restored(opened(saved)) as clone, pytest.raises(VmmError, match="cannot be shared with a device"):
        clone.share()
    memory.share()
    with pytest.raises(VmmError, match="a device maps"):
        memory.lay(0, 0, 0, PAGE)


@pytest.mark.parametrize("shared", [False, True])
def test_a_damaged_page_is_refused(saved: bytes, opened: Opened, shared: bool) -> None:
    changed = bytearray(saved)
    changed[PAGE + 2 * PAGE + 17] ^= 1
    with pytest.raises(StateError, match="the RAM is damaged: a checksum is wrong, that of the bytes from 0x0 on"):
        restored(opened(bytes(changed)), shared=shared).__enter__()


def test_only_pages_that_are_not_all_zeros_are_in_the_file(saved: bytes, opened: Opened) -> None:
    assert opened(saved).used == len(PLACES) * PAGE
    assert len(saved) < (len(PLACES) + 2) * PAGE


def test_pages_lie_at_whole_pages_so_that_they_can_be_mapped(saved: bytes) -> None:
    assert saved[PAGE : PAGE + 8] == b"page at "
    assert saved[2 * PAGE : 2 * PAGE + 16] == b"page at " + PLACES[1].to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "this is no saved machine: it does not begin as one"),
        (b"\x7fELF" + bytes(5000), "this is no saved machine: it does not begin as one"),
        (file.MAGIC, "the file ends in its header"),
        (file.MAGIC + bytes(100), "the file has format 0, and this program knows 2: another version wrote it"),
    ],
)
def test_a_foreign_file_is_refused_by_name(content: bytes, why: str, opened: Opened) -> None:
    with pytest.raises(StateError) as caught:
        opened(content)
    assert str(caught.value) == why


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_short_is_refused(saved: bytes, opened: Opened, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(saved) - 1))
    with pytest.raises(StateError):
        opened(saved[:length])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_outside_of_the_pages_is_noticed(saved: bytes, opened: Opened, data: st.DataObject) -> None:
    end = PAGE + len(PLACES) * PAGE
    at = data.draw(st.integers(0, HEADER - 1) | st.integers(end, len(saved) - 1))
    changed = bytearray(saved)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError):
        opened(bytes(changed))


@settings(max_examples=40)
@given(contents)
def test_sections_are_what_they_were(content: dict[str, bytes]) -> None:
    assert sections.unpack(sections.pack(content)) == content


@given(st.binary(max_size=100))
def test_any_bytes_are_sections_or_a_state_error(data: bytes) -> None:
    try:
        found = sections.unpack(data)
    except StateError:
        return
    assert sections.pack(found) == data


def test_a_damaged_section_is_named() -> None:
    packed = bytearray(sections.pack({"cpu0.regs": b"registers"}))
    packed[-1] ^= 1
    with pytest.raises(StateError, match=r"^section 'cpu0\.regs' of the machine's state is damaged"):
        sections.unpack(packed)


@pytest.mark.parametrize("value", [math.inf, 10**30, -5, "x", None, True])
def test_a_clock_that_no_machine_has_is_refused(value: object) -> None:
    with pytest.raises(StateError, match="no number below 2\\^32 for 'tsc_khz'"):
        from_json(to_json(SHAPE | {"tsc_khz": value}))


GOOD: dict[str, Any] = {"bars": {"0": 0x1000}, "rom": False, "decoding": 3, "line": 10, "table": "00ff", "pending": [1]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bars": {}}, "bars"),
        ({"bars": {"0": 0x1001}}, "bars"),
        ({"bars": {"0": -4096}}, "bars"),
        ({"bars": 7}, "bars"),
        ({"rom": 1}, "rom"),
        ({"decoding": 256}, "decoding"),
        ({"line": "x"}, "line"),
        ({"pending": [True]}, "pending"),
        ({"pending": [5000]}, "pending"),
        ({"table": "0"}, "table"),
        ({"table": 7}, "table"),
        ({"more": 1}, "expected an object with bars, rom, decoding, line, table, pending"),
    ],
)
def test_a_malformed_setup_of_a_device_is_refused_by_field(change: dict[str, object], field: str) -> None:
    setup = Setup(**GOOD)
    bars = [Bar(0, 4096, 0)]
    assert Setup.unpack(setup.pack(), bars) == setup
    with pytest.raises(StateError, match=field):
        Setup.unpack(json.dumps(GOOD | change).encode(), bars)
