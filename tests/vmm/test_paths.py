"""Every way from a guest's store to a device, on real KVM, and what each costs in exits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.registrations import Route
from bellwire_vmm.vmm import Machine
from kvm_ioctls import Kvm, KvmError
from vfio_user import Client, Mechanism, RegionIndex
from vmm import toy
from vmm.program import Outcome, Program, bar
from vmm.toy import MATCH, Toy

pytestmark = pytest.mark.kvm

Plug = Callable[[Toy], ProxyDevice]
Run = Callable[[Program], Outcome]

RINGS = 200
BEGIN, END = 1, 2


def speakers() -> list[str]:
    """Who can speak for ioregionfds here: the relay, and a kernel that has the ioctl."""
    with contextlib.suppress(KvmError), Kvm.open() as kvm, kvm.create_vm() as vm:
        return ["kernel", "relay"] if vm.has_ioregion() else ["relay"]
    return ["relay"]


@pytest.fixture(params=speakers())
def speaker(request: pytest.FixtureRequest) -> str:
    if request.param == "relay":
        request.getfixturevalue("relaying")
    return str(request.param)


def ringing(device: ProxyDevice, number: int, offset: int, value: int, size: int = 4) -> Program:
    """A program that rings RINGS times between two marks."""
    at, ports = bar(device, number) + offset, number == 2
    program = Program().mark(BEGIN)
    (program.out if ports else program.store)(at, value, size, times=RINGS)
    return program.mark(END)


@pytest.mark.parametrize(
    ("kind", "number", "offset", "value", "counter"),
    [
        ("wildcard", 1, toy.WILDCARD, 7, toy.WILDCARD_COUNT),
        ("datamatch", 1, toy.DATAMATCH, MATCH, toy.DATAMATCH_COUNT),
        ("pio", 2, toy.PIO, 7, toy.PIO_COUNT),
    ],
)
def test_an_ioeventfd_counts_every_ring_and_costs_no_exit(
    plug: Plug, run: Run, kind: str, number: int, offset: int, value: int, counter: int
) -> None:
    device = plug(device_of := Toy(kind))
    outcome = run(ringing(device, number, offset, value).load(bar(device, 0) + counter, 8))
    assert outcome.values == (RINGS,)
    assert outcome.exits(BEGIN, END) == (0, 0)
    assert not [message for message in device_of.messages if message[0] == number]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_wildcard_is_rung_by_stores_of_any_width(plug: Plug, run: Run, size: int) -> None:
    device = plug(Toy("wildcard"))
    program = Program().store(bar(device, 1) + toy.WILDCARD, 0, size)
    assert run(program.load(bar(device, 0) + toy.WILDCARD_COUNT, 8)).values == (1,)


def test_a_value_that_does_not_match_goes_by_message(plug: Plug, run: Run) -> None:
    device = plug(served := Toy("datamatch"))
    outcome = run(ringing(device, 1, toy.DATAMATCH, MATCH + 1).load(bar(device, 0)))
    assert outcome.exits(BEGIN, END) == (RINGS, RINGS)
    assert served.messages.count((1, toy.DATAMATCH, (MATCH + 1).to_bytes(4, "little"))) == RINGS


@pytest.mark.parametrize(("number", "offset"), [(0, toy.PLAIN), (1, toy.WILDCARD), (2, toy.PIO_PLAIN)])
def test_what_has_no_doorbell_exits_once_a_store(plug: Plug, run: Run, number: int, offset: int) -> None:
    device = plug(served := Toy())
    outcome = run(ringing(device, number, offset, 3).load(bar(device, 0)))
    assert outcome.exits(BEGIN, END) == (RINGS, 0 if number == 2 else RINGS)
    assert served.messages.count((number, offset, (3).to_bytes(4, "little"))) == RINGS


@pytest.mark.parametrize(("size", "value"), [(1, 0xA1), (2, 0xA1A2), (4, 0xA1A2_A3A4), (8, 0xA1A2_A3A4_A5A6_A7A8)])
def test_a_message_carries_the_stores_width_and_value(plug: Plug, run: Run, size: int, value: int) -> None:
    device = plug(served := Toy())
    run(Program().store(bar(device, 1) + 0x40, value, size).load(bar(device, 0)))
    assert (1, 0x40, value.to_bytes(size, "little")) in served.messages


def test_reads_of_every_width_come_back(plug: Plug, run: Run) -> None:
    device = plug(served := Toy())
    served.scratch[:8] = bytes(range(1, 9))
    at = bar(device, 1) + toy.SCRATCH
    program = Program().load(at, 1).load(at, 2).load(at + 4, 4).load(at, 8)
    assert run(program).values == (0x01, 0x0201, 0x0807_0605, 0x0807_0605_0403_0201)


class Recorder(Client):
    """Notes which writes were posted."""

    def __init__(self, other: Client) -> None:
        self.__dict__ = other.__dict__
        self.writes: list[tuple[int, bool]] = []

    def write(self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False) -> None:
        self.writes.append((region, posted))
        super().write(region, offset, data, posted=posted)


@pytest.mark.parametrize(
    ("mapped", "number", "posted"), [(False, 0, True), (False, 1, True), (False, 2, False), (True, 0, False)]
)
def test_memory_writes_are_posted_unless_a_mapped_area_could_overtake_them(
    machine: Machine, serve: Callable[[Toy], Client], run: Run, mapped: bool, number: int, posted: bool
) -> None:
    client = Recorder(serve(Toy(mapped=mapped)))
    device = machine.plug(client)
    at = bar(device, number) + 4
    program = Program().out(at, 1) if number == 2 else Program().store(at, 1)
    run(program)
    assert client.writes[-1] == (number, posted)


def test_writes_to_config_space_wait_for_their_reply(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    client = Recorder(serve(Toy()))
    device = machine.plug(client)
    run(Program().config(device.slot, 0x40, 0))
    assert client.writes[-1] == (RegionIndex.CONFIG, False)


def test_posted_values_are_passed_on_in_order(speaker: str, plug: Plug, run: Run) -> None:
    device = plug(served := Toy("value"))
    program = Program().mark(BEGIN)
    for value in range(1, RINGS + 1):
        program.store(bar(device, 1) + toy.VALUE, value)
    program.mark(END)
    counts = bar(device, 0)
    outcome = run(program.load(counts + toy.VALUE_COUNT, 8).load(counts + toy.VALUE_ERRORS, 8))
    assert outcome.values == (RINGS, 0)
    assert outcome.exits(BEGIN, END) == ((RINGS, RINGS) if speaker == "relay" else (0, 0))
    assert not [message for message in served.messages if message[0] == 1]


def test_acknowledgements_and_answers_are_waited_for(speaker: str, plug: Plug, run: Run) -> None:
    device = plug(served := Toy("acked"))
    at = bar(device, 1) + toy.SCRATCH
    program = Program().store(at, 1).store(at, 2).store(at + 8, 0x1122_3344_5566_7788, 8)
    program.load(at + 8, 8).load(at + 9, 1).load(at, 4)
    counts = bar(device, 0)
    program.load(counts + toy.ACKED_COUNT, 8).load(counts + toy.ACKED_ERRORS, 8).load(counts + toy.READ_COUNT, 8)
    assert run(program).values == (0x1122_3344_5566_7788, 0x77, 2, 2, 0, 3)
    assert not [message for message in served.messages if message[0] == 1]


def test_an_access_that_a_region_does_not_hold_goes_by_message(speaker: str, plug: Plug, run: Run) -> None:
    device = plug(served := Toy("value", "acked"))
    at = bar(device, 1)
    run(Program().store(at + toy.VALUE, 1, 8).store(at + toy.VALUE - 2, 1, 4).load(bar(device, 0)))
    assert [message[1] for message in served.messages if message[0] == 1] == [toy.VALUE, toy.VALUE - 2]


def test_a_hang_up_falls_back_to_messages(speaker: str, plug: Plug, run: Run) -> None:
    device = plug(served := Toy("value", "acked"))
    served.hang_up()
    at, counts = bar(device, 1), bar(device, 0)
    program = Program().store(at + toy.VALUE, 1).store(at + toy.VALUE, 2).store(at + toy.SCRATCH, 1)
    program.load(at + toy.SCRATCH).load(counts + toy.VALUE_COUNT, 8).load(counts + toy.ACKED_COUNT, 8)
    assert run(program).values == (1, 2, 1)
    assert [message[1] for message in served.messages if message[0] == 1] == [toy.VALUE] * 2 + [toy.SCRATCH]
    if speaker == "relay":  # the kernel does not tell
        assert [(each.mechanism, each.reason) for each in device.routes()] == [
            ("region_write", "the device closed its ioregionfd")
        ] * 2


def test_the_vmm_reports_which_mechanism_each_sub_region_got(speaker: str, plug: Plug) -> None:
    device = plug(Toy("wildcard", "datamatch", "value", "acked", "pio"))
    assert device.routes() == [
        Route(1, toy.WILDCARD, 0, Mechanism.IOEVENTFD),
        Route(1, toy.DATAMATCH, 4, Mechanism.IOEVENTFD_DATAMATCH),
        Route(1, toy.VALUE, 4, Mechanism(f"ioregionfd {speaker}")),
        Route(1, toy.SCRATCH, 256, Mechanism(f"ioregionfd {speaker}")),
        Route(2, toy.PIO, 0, Mechanism.IOEVENTFD),
    ]


def test_what_nobody_answers_reads_as_ones_and_swallows_writes(run: Run) -> None:
    program = Program().load(0xD000_0000).load(0xD000_0000, 1).in_(0x2F8, 2).store(0xD000_0000, 1).out(0x2F8, 1)
    assert run(program).values == (0xFFFF_FFFF, 0xFF, 0xFFFF)
