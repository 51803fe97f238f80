"""Lab 1: the driver reads and writes the registers of edu, and does not wait for ever."""

from __future__ import annotations

import math

from bellwire.pytest import Vm, machine

pytestmark = machine(devices=["edu"], module="edu_registers.ko")

COMPUTING = 0x01


def place(vm: Vm) -> str:
    """The folder of the device in sysfs."""
    return vm.run("echo /sys/bus/pci/drivers/edu_registers/0000:*", check=True).stdout.decode().strip()


def test_the_version_is_that_of_edu(vm: Vm) -> None:
    assert vm.run(f"cat {place(vm)}/version", check=True).stdout == b"1.0\n"


def test_edu_is_alive(vm: Vm) -> None:
    assert vm.run(f"cat {place(vm)}/alive", check=True).stdout == b"1\n"


def test_a_factorial_is_computed(vm: Vm) -> None:
    file = f"{place(vm)}/factorial"
    for number in (0, 1, 5, 12, 20, 34):
        done = vm.run(f"echo {number} >{file} && cat {file}", check=True)
        assert int(done.stdout) == math.factorial(number) % 2**32, f"the factorial of {number}"


def test_a_computation_without_an_end_is_given_up(vm: Vm) -> None:
    file = f"{place(vm)}/factorial"
    edu = vm.device("edu")
    edu.status = COMPUTING  # it seems to compute, and ignores the number
    done = vm.run(f"dd of={file} status=none", input=b"5")
    assert b"timed out" in done.stderr
    edu.status = 0
    assert vm.run(f"echo 5 >{file} && cat {file}", check=True).stdout == b"120\n"
