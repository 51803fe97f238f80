"""Lab 4: the driver keeps the ring of the engine full, and takes out what is done."""

from __future__ import annotations

import random
from pathlib import Path

from bellwire.pytest import Vm, machine

ENGINE = str(Path(__file__).parents[1] / "engine.py")
pytestmark = machine(devices=[ENGINE], module="engine_queues.ko")

SIZE, CHUNK, ENTRIES = 65536, 512, 16  # as in the driver


def copied(vm: Vm, data: bytes) -> bytes:
    """Have the driver copy ``data`` in one write, and read the copy."""
    vm.run(f"dd of=/dev/engine bs={SIZE} iflag=fullblock status=none", input=data, check=True)
    return vm.run(f"dd if=/dev/engine bs={SIZE} count=1 status=none", check=True).stdout[: len(data)]


def content(seed: int, size: int) -> bytes:
    """Bytes that are the same in each run."""
    return random.Random(seed).randbytes(size)


def test_one_descriptor_is_copied(vm: Vm) -> None:
    assert copied(vm, b"hello") == b"hello"
    assert vm.device("engine").head == 1


def test_the_ring_takes_one_less_than_it_has_entries(vm: Vm) -> None:
    data = content(1, (ENTRIES - 1) * CHUNK)
    assert copied(vm, data) == data
    assert vm.device("engine").tail.rung == 1


def test_the_ring_wraps(vm: Vm) -> None:
    for seed in range(5):
        data = content(seed, 10 * CHUNK)
        assert copied(vm, data) == data


def test_a_copy_may_be_much_larger_than_the_ring(vm: Vm) -> None:
    for seed, size in enumerate((SIZE, SIZE - 1, 60 * CHUNK + 1)):
        data = content(seed, size)
        assert copied(vm, data) == data


def test_the_engine_is_never_told_a_wrong_tail(vm: Vm) -> None:
    copied(vm, content(6, SIZE))
    engine = vm.device("engine")
    assert engine.error == 0
    assert engine.head == SIZE // CHUNK % ENTRIES
