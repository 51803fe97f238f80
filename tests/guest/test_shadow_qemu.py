"""Shadow doorbells in the QEMU with our patches: rings that carry a value, and are no message."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attached import Device, Served
from crafted import MEMORY_BAR, Crafted, Entry, entries
from doorbells import drive, gone, rung, served, until, written
from machine import ROOT_PORT, Machine
from patched import PatchedToolbox

__all__ = ["drive", "served"]

pytestmark = pytest.mark.guest

CONTROL, BELLS = 0, 1
PLAIN, LATEST, LATEST_VALUE, LATEST_COUNT, LATEST_ERRORS, PLAIN_COUNT = 0x10, 0x40, 0xDC, 0xE0, 0xE8, 0x68
AT, SHADOW, DATAMATCH = 0x40, 2, 1
PAGE = 4096
ADD_SEALS, SEAL_SEAL = 1033, 1


# -- our server


def test_a_ring_with_a_value_is_no_message(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    for value in range(1, 101):
        function.write(BELLS, LATEST, value)
    seen = [function.read(CONTROL, at, size) for at, size in ((LATEST_VALUE, 4), (LATEST_COUNT, 8), (LATEST_ERRORS, 8))]
    assert seen == [100, 100, 0]
    assert written(served) == []


def test_a_write_of_another_width_is_a_message_with_its_value(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    function.write(BELLS, LATEST, 0x1234, 2)
    assert function.read(CONTROL, LATEST_VALUE) == 0x1234
    assert written(served) == [(BELLS, LATEST)]


def test_it_follows_its_bar(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    function.config_write(0x10 + 4 * BELLS, function.bars[BELLS] + 0x10_0000)
    function.bars[BELLS] += 0x10_0000
    function.write(BELLS, LATEST, 1)
    function.config_write(0x04, 0, 2)
    function.write(BELLS, LATEST, 2)
    function.config_write(0x04, 7, 2)
    function.write(BELLS, LATEST, 3)
    assert (function.read(CONTROL, LATEST_COUNT, 8), function.read(CONTROL, LATEST_VALUE)) == (2, 3)
    assert written(served) == []


def test_it_sees_the_write_that_was_posted_before_it(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    for number in range(1, 501):
        function.write(CONTROL, PLAIN, number)
        function.write(BELLS, LATEST, number)
    assert [function.read(CONTROL, at, 8) for at in (PLAIN_COUNT, LATEST_COUNT, LATEST_ERRORS)] == [500, 500, 0]


def test_no_doorbell_of_nvme_is_a_message(drive: Callable[..., Machine], serve: Callable[[Device], Served]) -> None:
    served = serve(Device("nvme"))
    (function,) = drive(served).functions
    for number in range(14):  # the admin pair, and six pairs for I/O
        function.write(0, 0x1000 + 4 * number, number)
    function.read(0, 0)
    assert written(served) == []


def test_the_property_turns_it_off_and_the_server_is_not_told(
    drive: Callable[..., Machine], serve: Callable[[Device], Served]
) -> None:
    served = serve(Device("bell", qemu={"x-no-io-fds": True}))
    (function,) = drive(served).functions
    function.write(BELLS, LATEST, 7)
    assert function.read(CONTROL, LATEST_VALUE) == 7
    assert written(served) == [(BELLS, LATEST)]


def test_unplugging_lets_all_of_it_go(drive: Callable[..., Machine], serve: Callable[[Device], Served]) -> None:
    served = serve(Device("nvme"))
    machine = drive(arguments=ROOT_PORT)
    machine.power_off()
    machine.control.ask("query-status")  # QEMU has taken the connection
    before = held(machine)
    for times in range(1, 6):
        machine.plug(served)
        assert held(machine)[0] > before[0]
        machine.unplug()
        until(functools.partial(gone, served, times))
    until(lambda: held(machine) == before)  # QEMU frees some of it a moment later


def held(machine: Machine) -> tuple[int, int]:
    """The descriptors that QEMU has open, and the cells that it has mapped."""
    process = Path(f"/proc/{machine.process.pid}")
    return len(list((process / "fd").iterdir())), (process / "maps").read_text().count("bellwire-shadow")


def test_the_test_in_qemus_own_tree_passes(patched_tools: PatchedToolbox, tmp_path: Path) -> None:
    binary = tmp_path / "qemu-system-x86_64"  # the test takes a path, and so cannot be told where the firmware is
    binary.write_text(f'#!/bin/sh\nexec {shlex.join(patched_tools.qemu)} "$@"\n')
    binary.chmod(0o755)
    environment = patched_tools.qemu_environment | {"QTEST_QEMU_BINARY": os.fspath(binary)}
    done = subprocess.run([patched_tools.own_test], env=environment, capture_output=True, timeout=60, check=False)
    passed = re.findall(rb"^ok \d+ /x86_64/vfio-user/(\S+)", done.stdout, re.MULTILINE)
    assert (done.returncode, len(passed)) == (0, 8), done.stdout + done.stderr


# -- servers that QEMU must not believe


@pytest.fixture
def memory() -> Iterator[int]:
    """Shadow memory as a careful server has it."""
    fd = os.memfd_create("shadow", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    yield fd
    os.close(fd)


def shadow(**words: int) -> Entry:
    """A good entry, but for what is given."""
    return Entry(**({"offset": AT, "size": 4, "kind": SHADOW, "memory": 1} | words))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_value_is_stored_and_the_eventfd_signalled(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, memory: int, size: int
) -> None:
    server = craft(entries(shadow(size=size, place=64), fds=[bell, memory]))
    (function,) = drive(server).functions
    value = int.from_bytes(bytes(range(0x81, 0x81 + size)), "little")
    function.write(MEMORY_BAR, AT, value, size)
    assert (rung(bell), server.writes) == (1, [])
    assert os.pread(memory, PAGE, 0) == bytes(64) + value.to_bytes(size, "little") + bytes(PAGE - 64 - size)


def test_the_memory_cannot_be_shrunk_any_more(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, memory: int
) -> None:
    (function,) = drive(craft(entries(shadow(), fds=[bell, memory]))).functions
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    function.write(MEMORY_BAR, AT, 5)
    assert os.pread(memory, 4, 0) == b"\5\0\0\0"


def test_a_counter_that_is_full_does_not_hold_qemu_up(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, memory: int
) -> None:
    (function,) = drive(craft(entries(shadow(), fds=[bell, memory]))).functions
    os.eventfd_write(bell, (1 << 64) - 2)
    function.write(MEMORY_BAR, AT, 5)
    assert function.read(MEMORY_BAR, 0) == 0
    assert os.pread(memory, 4, 0) == b"\5\0\0\0"


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(shadow(size=0), id="of-any-size"),
        pytest.param(shadow(size=3), id="a-size-of-3"),
        pytest.param(shadow(flags=DATAMATCH, datamatch=1), id="with-a-value-to-match"),
        pytest.param(shadow(memory=2), id="memory-that-did-not-come"),
        pytest.param(shadow(memory=0xFFFF_FFFF), id="no-memory"),
        pytest.param(shadow(memory=0), id="an-eventfd-for-memory"),
        pytest.param(shadow(fd_index=1), id="memory-for-an-eventfd"),
        pytest.param(shadow(place=2), id="not-aligned"),
        pytest.param(shadow(place=PAGE), id="behind-the-memory"),
        pytest.param(shadow(size=8, place=PAGE - 4), id="over-its-end"),
        pytest.param(shadow(place=1 << 63), id="far-behind-it"),
        pytest.param(shadow(place=(1 << 64) - 4), id="at-the-end-of-numbers"),
        pytest.param(shadow(offset=PAGE), id="behind-the-region"),
        pytest.param(Entry(AT, size=4, kind=SHADOW), id="in-40-bytes"),
    ],
)
def test_an_entry_that_cannot_be_used_is_left_to_messages(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, memory: int, entry: Entry
) -> None:
    server = craft(entries(entry, fds=[bell, memory]))
    (function,) = drive(server).functions
    function.write(MEMORY_BAR, AT, 1)
    function.read(MEMORY_BAR, 0)
    assert (rung(bell), [write[:2] for write in server.writes]) == (0, [(MEMORY_BAR, AT)])
    assert os.pread(memory, PAGE, 0) == bytes(PAGE)


def unsealable() -> int:
    """Memory whose owner keeps the right to shrink it."""
    fd = os.memfd_create("shadow")
    os.ftruncate(fd, PAGE)
    return fd


def sealed_open() -> int:
    """Memory that takes no more seals."""
    fd = os.memfd_create("shadow", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    fcntl.fcntl(fd, ADD_SEALS, SEAL_SEAL)
    return fd


def empty() -> int:
    """Memory without a byte."""
    return os.memfd_create("shadow", os.MFD_ALLOW_SEALING)


def reading() -> int:
    """Memory that can only be read."""
    fd = os.memfd_create("shadow", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def no_file() -> int:
    """No file at all."""
    with socket.socket() as one:
        return one.detach()


@pytest.mark.parametrize("make", [unsealable, sealed_open, empty, reading, no_file])
def test_memory_that_could_end_qemu_is_left_to_messages(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, make: Callable[[], int]
) -> None:
    fd = make()
    try:
        server = craft(entries(shadow(), fds=[bell, fd]))
        (function,) = drive(server).functions
        function.write(MEMORY_BAR, AT, 1)
        function.read(MEMORY_BAR, 0)
        assert (rung(bell), [write[:2] for write in server.writes]) == (0, [(MEMORY_BAR, AT)])
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("first", "second", "stored"),
    [
        pytest.param(shadow(), shadow(place=8), True, id="twice"),
        pytest.param(shadow(size=8), shadow(offset=AT + 4, place=8), True, id="in-the-middle-of-another"),
        pytest.param(shadow(), Entry(AT, memory=0), True, id="any-write-after-it"),
        pytest.param(Entry(AT, memory=0), shadow(), False, id="after-any-write"),
    ],
)
def test_of_two_entries_that_overlap_the_first_counts(
    drive: Callable[..., Machine],
    craft: Callable[..., Crafted],
    bell: int,
    memory: int,
    first: Entry,
    second: Entry,
    stored: bool,
) -> None:
    server = craft(entries(first, second, fds=[bell, memory]))
    (function,) = drive(server).functions
    function.write(MEMORY_BAR, AT, 1, first.size or 4)
    function.read(MEMORY_BAR, 0)
    assert (rung(bell), server.writes) == (1, [])
    assert os.pread(memory, PAGE, 0) == (b"\1" if stored else b"\0") + bytes(PAGE - 1)
