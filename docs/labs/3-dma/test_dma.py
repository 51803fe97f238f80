"""Lab 3: the driver has edu copy between memory and its buffer."""

from __future__ import annotations

import random

from bellwire.pytest import Vm, machine

pytestmark = machine(devices=["edu"], module="edu_dma.ko")

SIZE = 4096


def content(seed: int, size: int = SIZE) -> bytes:
    """Bytes that are the same in each run."""
    return random.Random(seed).randbytes(size)


def write(vm: Vm, data: bytes, block: int = 0) -> None:
    """Write ``data`` in one piece, behind so many pieces of its size."""
    words = f"dd of=/dev/edu bs={len(data)} seek={block} conv=notrunc iflag=fullblock status=none"
    vm.run(words, input=data, check=True)


def read(vm: Vm, size: int, block: int = 0) -> bytes:
    """Read one piece of ``size`` bytes, behind so many others."""
    return vm.run(f"dd if=/dev/edu bs={size} skip={block} count=1 status=none", check=True).stdout


def test_what_is_written_is_in_the_buffer_of_edu(vm: Vm) -> None:
    data = content(1)
    write(vm, data)
    assert vm.device("edu").buffer == data


def test_what_is_in_the_buffer_of_edu_can_be_read(vm: Vm) -> None:
    data = content(2)
    write(vm, data)
    assert read(vm, SIZE) == data


def test_a_part_lies_where_it_was_written(vm: Vm) -> None:
    write(vm, content(3))
    write(vm, b"hello", block=100)
    assert read(vm, 5, block=100) == b"hello"
    assert read(vm, SIZE) == content(3)[:500] + b"hello" + content(3)[505:]


def test_there_is_nothing_behind_the_end(vm: Vm) -> None:
    assert read(vm, SIZE, block=1) == b""
    done = vm.run(f"dd of=/dev/edu bs={SIZE} seek=1 conv=notrunc status=none", input=b"x")
    assert b"No space left" in done.stderr


def test_a_transfer_without_an_end_is_given_up(vm: Vm) -> None:
    write(vm, content(4))
    edu = vm.device("edu")
    edu.held_command = 1  # a transfer seems to be under way, and edu ignores the next one
    done = vm.run(f"dd if=/dev/edu bs={SIZE} count=1 status=none")
    assert b"timed out" in done.stderr
    edu.held_command = 0
    assert read(vm, SIZE) == content(4)
