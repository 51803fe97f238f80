"""Lab 2: the driver sleeps until edu interrupts, and acknowledges."""

from __future__ import annotations

import math

from bellwire.pytest import Vm, machine

pytestmark = machine(devices=["edu"], module="edu_interrupts.ko")

COMPUTING = 0x01
IRQ_FACTORIAL, IRQ_OTHER = 0x001, 0x002


def place(vm: Vm) -> str:
    """The folder of the device in sysfs."""
    return vm.run("echo /sys/bus/pci/drivers/edu_interrupts/0000:*", check=True).stdout.decode().strip()


def interrupts(vm: Vm) -> int:
    """How many interrupts the driver's handler has been called for, on all CPUs."""
    _, *words = vm.run("grep edu_interrupts /proc/interrupts", check=True).stdout.split()
    return sum(int(word) for word in words if word.isdigit())


def test_a_factorial_is_computed(vm: Vm) -> None:
    file = f"{place(vm)}/factorial"
    for number in (0, 5, 12, 34):
        done = vm.run(f"echo {number} >{file} && cat {file}", check=True)
        assert int(done.stdout) == math.factorial(number) % 2**32, f"the factorial of {number}"


def test_each_factorial_takes_one_interrupt(vm: Vm) -> None:
    before = interrupts(vm)
    for _ in range(3):
        vm.run(f"echo 5 >{place(vm)}/factorial", check=True)
    assert interrupts(vm) - before == 3


def test_the_interrupt_is_acknowledged(vm: Vm) -> None:
    vm.run(f"echo 5 >{place(vm)}/factorial", check=True)
    assert int(vm.run(f"cat {place(vm)}/pending", check=True).stdout, 0) == 0
    assert vm.device("edu").irq_status == 0


def test_an_interrupt_for_another_reason_is_acknowledged_and_wakes_nobody_up(vm: Vm) -> None:
    edu = vm.device("edu")
    edu.status = COMPUTING  # it seems to compute, and ignores the number
    edu.interrupt(IRQ_OTHER)
    done = vm.run(f"dd of={place(vm)}/factorial status=none", input=b"5")
    assert b"timed out" in done.stderr
    assert edu.irq_status == 0
    edu.status = 0


def test_an_interrupt_of_before_wakes_nobody_up(vm: Vm) -> None:
    edu = vm.device("edu")
    edu.interrupt(IRQ_FACTORIAL)  # as if a factorial were ready
    vm.run("sleep 0.1", check=True)
    edu.status = COMPUTING
    done = vm.run(f"dd of={place(vm)}/factorial status=none", input=b"5")
    assert b"timed out" in done.stderr
    edu.status = 0
    file = f"{place(vm)}/factorial"
    assert vm.run(f"echo 5 >{file} && cat {file}", check=True).stdout == b"120\n"
