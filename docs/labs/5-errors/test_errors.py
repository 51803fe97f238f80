"""Lab 5: the driver reports what goes wrong, and the engine works again after it."""

from __future__ import annotations

import random
from pathlib import Path

from bellwire.pytest import Vm, machine

ENGINE = str(Path(__file__).parents[1] / "engine.py")
pytestmark = machine(devices=[ENGINE], module="engine_errors.ko")

SIZE = 65536  # as in the driver
DATA = random.Random(5).randbytes(SIZE)


def write(vm: Vm, data: bytes) -> bytes:
    """Have the driver copy ``data`` in one write. What dd says of errors."""
    return vm.run(f"dd of=/dev/engine bs={SIZE} iflag=fullblock status=none", input=data).stderr


def read(vm: Vm, size: int) -> bytes:
    """Read the copy."""
    return vm.run(f"dd if=/dev/engine bs={size} count=1 status=none", check=True).stdout


def inject(vm: Vm, fault: str) -> None:
    """Have something go wrong with the next descriptor."""
    vm.run(f"for file in /sys/bus/pci/drivers/engine_errors/0000:*/inject; do echo {fault} >$file; done", check=True)


def check_that_it_works(vm: Vm) -> None:
    """A copy that is larger than the ring."""
    assert write(vm, DATA) == b""
    assert read(vm, SIZE) == DATA
    assert vm.device("engine").error == 0


def test_without_errors_it_copies(vm: Vm) -> None:
    check_that_it_works(vm)


def test_a_halt_is_an_io_error_and_the_engine_works_again(vm: Vm) -> None:
    inject(vm, "error")
    assert b"Input/output error" in write(vm, DATA)
    check_that_it_works(vm)


def test_a_hung_engine_is_a_timeout_and_the_engine_works_again(vm: Vm) -> None:
    inject(vm, "hang")
    assert b"timed out" in write(vm, DATA)
    check_that_it_works(vm)


def test_silence_is_no_error_if_all_was_copied(vm: Vm) -> None:
    inject(vm, "silence")
    assert write(vm, b"hello") == b""
    assert read(vm, 5) == b"hello"
    check_that_it_works(vm)


def test_one_error_after_the_other_is_survived(vm: Vm) -> None:
    for fault in ("error", "error", "silence", "error"):
        inject(vm, fault)
        assert (write(vm, b"hello") == b"") is (fault == "silence")
    check_that_it_works(vm)
