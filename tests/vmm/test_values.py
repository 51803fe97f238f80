"""Doorbells that carry values, on real KVM: devices of the SDK in our VMM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bellwire.bundled.bell import Bell
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.vmm import Machine
from vfio_user import Client, Mechanism
from vmm.program import Outcome, Program, bar
from vmm.sdk import working

pytestmark = pytest.mark.kvm

Run = Callable[[Program], Outcome]
RINGS = 200
BEGIN, END = 1, 2


@pytest.fixture
def bell(machine: Machine) -> Iterator[ProxyDevice]:
    """A bell in the machine."""
    with ExitStack() as stack:
        yield machine.plug(Client(stack.enter_context(working(Bell))))
        machine.close()


def test_a_few_values_cost_no_exit_and_others_one(bell: ProxyDevice, run: Run) -> None:
    at, control = bar(bell, 1) + Bell.few.offset, bar(bell, 0)
    program = Program().mark(BEGIN)
    for value in range(8):
        program.store(at, value, times=RINGS)
    program.mark(END).store(at, 8).mark(3)
    outcome = run(program.load(control + Bell.few_count.offset, 8).load(control + Bell.few_seen.offset))
    assert outcome.values == (8 * RINGS, 0xFF)
    assert outcome.exits(BEGIN, END) == (0, 0)
    assert outcome.exits(END, 3) == (1, 1)


def test_each_value_is_registered_with_kvm(bell: ProxyDevice) -> None:
    found = [each for each in bell.routes() if (each.bar, each.offset) == (1, Bell.few.offset)]
    assert [each.mechanism for each in found] == [Mechanism.IOEVENTFD_DATAMATCH] * 8
