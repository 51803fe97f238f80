"""Doorbells that carry values, on real KVM: devices of the SDK in our VMM."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bellwire.bundled.bell import Bell
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.vmm import Machine
from kvm_ioctls import Kvm, KvmError
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


def ringers() -> list[str]:
    """Who can ring shadow doorbells here: the VMM, and a kernel that has the flag."""
    with contextlib.suppress(KvmError), Kvm.open() as kvm, kvm.create_vm() as vm:
        return ["kernel", "relay"] if vm.has_post_write() else ["relay"]
    return ["relay"]


@pytest.fixture(params=ringers())
def ringer(request: pytest.FixtureRequest) -> str:
    if request.param == "relay":
        request.getfixturevalue("unposting")
    return str(request.param)


def test_a_shadow_doorbell_gives_the_last_value_and_counts_all_rings(ringer: str, bell: ProxyDevice, run: Run) -> None:
    at, control = bar(bell, 1) + Bell.latest.offset, bar(bell, 0)
    program = Program().mark(BEGIN)
    for value in range(1, RINGS + 1):
        program.store(at, value)
    program.mark(END)
    for counter in (Bell.latest_value, Bell.latest_count, Bell.latest_errors):
        program.load(control + counter.offset, counter.size)
    outcome = run(program)
    assert outcome.values == (RINGS, RINGS, 0)
    assert outcome.exits(BEGIN, END) == ((0, 0) if ringer == "kernel" else (RINGS, RINGS))
    (standing,) = [each for each in bell.standings() if each.route.offset == Bell.latest.offset]
    assert standing.route.mechanism == f"shadow {ringer}"
    assert standing.exits == (0 if ringer == "kernel" else RINGS)


def test_a_store_of_another_width_goes_by_message(ringer: str, bell: ProxyDevice, run: Run) -> None:
    at, control = bar(bell, 1) + Bell.latest.offset, bar(bell, 0)
    program = Program().store(at, 0x11, 1).load(control + Bell.latest_value.offset)
    assert run(program.store(at, 0x2222, 2).load(control + Bell.latest_value.offset)).values == (0x11, 0x2222)


def test_a_shadow_doorbell_follows_its_bar(ringer: str, bell: ProxyDevice, run: Run) -> None:
    at, control = bar(bell, 1) + Bell.latest.offset, bar(bell, 0)
    program = Program().store(at, 1).config(bell.slot, 0x04, 0, 2).store(at, 2).config(bell.slot, 0x04, 7, 2)
    program.store(at, 3).load(control + Bell.latest_count.offset, 8).load(control + Bell.latest_value.offset)
    assert run(program).values == (2, 3)


def test_a_shadow_ring_sees_the_write_that_was_posted_before_it(ringer: str, bell: ProxyDevice, run: Run) -> None:
    at, control = bar(bell, 1) + Bell.latest.offset, bar(bell, 0)
    program = Program()
    for value in range(1, RINGS + 1):
        program.store(control + Bell.plain.offset, value).store(at, value)
    program.load(control + Bell.plain_count.offset, 8).load(control + Bell.latest_count.offset, 8)
    assert run(program).values == (RINGS, RINGS)
