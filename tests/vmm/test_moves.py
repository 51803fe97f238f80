"""Where a BAR goes, its registrations go; and they end with decoding, reset and unplug."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.device.registrations import Route
from bellwire_vmm.vmm import Machine
from vfio_user import Client, Mechanism
from vmm import toy
from vmm.program import Outcome, Program, bar
from vmm.toy import EXPRESS_AT, MATCH, Toy

pytestmark = pytest.mark.kvm

Plug = Callable[[Toy], ProxyDevice]
Run = Callable[[Program], Outcome]

COMMAND, BAR1, BAR2, BAR4 = 0x04, 0x14, 0x18, 0x20
PORTS, MEMORY = 1, 2
ELSEWHERE, OTHER_PORTS = 0xD000_0000, 0xE000
ALL = ("wildcard", "datamatch", "value", "acked", "pio")


@pytest.mark.parametrize(
    ("kind", "offset", "value", "counter"),
    [
        ("wildcard", toy.WILDCARD, 0, toy.WILDCARD_COUNT),
        ("datamatch", toy.DATAMATCH, MATCH, toy.DATAMATCH_COUNT),
        ("value", toy.VALUE, 1, toy.VALUE_COUNT),
        ("acked", toy.SCRATCH, 1, toy.ACKED_COUNT),
    ],
)
def test_a_doorbell_follows_its_bar(plug: Plug, run: Run, kind: str, offset: int, value: int, counter: int) -> None:
    device = plug(served := Toy(kind))
    old, count = bar(device, 1), bar(device, 0) + counter
    program = Program().config(device.slot, BAR1, ELSEWHERE)
    program.store(ELSEWHERE + offset, value).load(count, 8).store(old + offset, value).load(count, 8)
    program.config(device.slot, BAR1, old).store(ELSEWHERE + offset, value).load(count, 8)
    program.store(old + offset, value).load(count, 8)
    assert run(program).values == (1, 1, 1, 2)
    assert not [message for message in served.messages if message[0] == 1]


def test_a_port_doorbell_follows_its_bar(plug: Plug, run: Run) -> None:
    device = plug(Toy("pio"))
    old, count = bar(device, 2), bar(device, 0) + toy.PIO_COUNT
    program = Program().config(device.slot, BAR2, OTHER_PORTS).mark(1).out(OTHER_PORTS + toy.PIO, 1).mark(2)
    outcome = run(program.out(old + toy.PIO, 1).load(count, 8))
    assert outcome.values == (1,)
    assert outcome.exits(1, 2) == (0, 0)


def test_no_doorbell_rings_while_decoding_is_off(plug: Plug, run: Run) -> None:
    device = plug(Toy("wildcard", "pio"))
    at, ports, counts = bar(device, 1), bar(device, 2), bar(device, 0)
    program = Program().config(device.slot, COMMAND, 0, 2).store(at, 0).out(ports, 0).load(counts)
    program.config(device.slot, COMMAND, MEMORY, 2).store(at, 0).out(ports, 0)
    program.load(counts + toy.WILDCARD_COUNT, 8).load(counts + toy.PIO_COUNT, 8)
    program.config(device.slot, COMMAND, MEMORY | PORTS, 2).out(ports, 0).load(counts + toy.PIO_COUNT, 8)
    assert run(program).values == (0xFFFF_FFFF, 1, 0, 1)


def test_sizing_a_bar_with_decoding_on_puts_it_back_unharmed(plug: Plug, run: Run) -> None:
    device = plug(Toy("wildcard"))
    at = bar(device, 1)
    program = Program().config(device.slot, BAR1, 0xFFFF_FFFF).read_config(device.slot, BAR1)
    program.config(device.slot, BAR1, at).read_config(device.slot, BAR1).store(at, 0)
    assert run(program.load(bar(device, 0) + toy.WILDCARD_COUNT, 8)).values == (0xFFFF_F000, at, 1)


def test_a_64_bit_bar_lies_high_below_the_reach_of_every_host(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    at = bar(device, 4)
    assert 1 << 32 <= at < 1 << 40
    elsewhere = (1 << 39) + (1 << 30)
    program = Program().load(at + 12).config(device.slot, BAR4, elsewhere & 0xFFFF_FFFF)
    program.config(device.slot, BAR4 + 4, elsewhere >> 32).load(elsewhere + 12).load(at + 12)
    program.read_config(device.slot, BAR4).read_config(device.slot, BAR4 + 4)
    assert run(program).values == (1, 1, 0xFFFF_FFFF, elsewhere & 0xFFFF_FFFF | 0xC, elsewhere >> 32)


def test_a_64_bit_bar_beyond_reach_answers_nowhere(plug: Plug, run: Run) -> None:
    device = plug(Toy())
    at = bar(device, 4)
    program = Program().config(device.slot, BAR4 + 4, 1 << 8).load(at + 12)
    assert run(program.config(device.slot, BAR4 + 4, at >> 32).load(at + 12)).values == (0xFFFF_FFFF, 1)


@pytest.mark.parametrize("address", [0x1000, 0xFEC0_0000, 0xFEE0_0000, 0xFFFF_F000])
def test_a_bar_over_ram_or_the_interrupt_controllers_answers_nowhere(plug: Plug, run: Run, address: int) -> None:
    device = plug(served := Toy("wildcard"))
    run(Program().config(device.slot, BAR1, address).load(bar(device, 0)))
    assert served.counts == {}
    assert device.routes() == [Route(1, 0, 0, Mechanism.IOEVENTFD)]


def test_two_bars_at_one_place_leave_it_to_the_first(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    first, second = (machine.plug(serve(Toy("wildcard"))) for _ in range(2))
    taken, free = bar(first, 1), bar(second, 1)
    counts = [bar(device, 0) + toy.WILDCARD_COUNT for device in (first, second)]
    program = Program().config(second.slot, BAR1, taken).store(taken, 0).load(counts[0], 8).load(counts[1], 8)
    program.config(second.slot, BAR1, free).store(free, 0).load(counts[0], 8).load(counts[1], 8)
    assert run(program).values == (1, 0, 1, 1)


def test_a_reset_puts_bars_and_doorbells_back_home(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(*ALL))
    home = bar(device, 1)
    run(Program().config(device.slot, BAR1, ELSEWHERE))
    assert bar(device, 1) == ELSEWHERE
    resets = served.resets
    device.reset()
    assert served.resets == resets + 1
    assert bar(device, 1) == home
    program = Program().store(home, 0).store(ELSEWHERE, 0).load(bar(device, 0) + toy.WILDCARD_COUNT, 8)
    assert run(program).values == (1,)


def test_a_function_level_reset_takes_bars_and_doorbells_away(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(*ALL))
    old = [bar(device, number) for number in range(3)]
    resets = served.resets
    program = Program().config(device.slot, EXPRESS_AT + 8, 0x8000, 2).store(old[1], 0).out(old[2], 0).load(old[0])
    program.read_config(device.slot, BAR1).read_config(device.slot, COMMAND, 2)
    for number, address in enumerate(old):
        program.config(device.slot, 0x10 + 4 * number, address)
    program.config(device.slot, COMMAND, MEMORY | PORTS, 2).store(old[1], 0)
    program.load(old[0] + toy.WILDCARD_COUNT, 8).load(old[0] + toy.PIO_COUNT, 8)
    assert run(program).values == (0xFFFF_FFFF, 0, 0, 1, 0)
    assert served.resets == resets + 2  # the load's, and the guest's own


def test_an_unplugged_device_leaves_its_slot_and_addresses_to_the_next(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    first = machine.plug(serve(Toy(*ALL)))
    places, slot = [bar(first, number) for number in range(5)], first.slot
    machine.unplug(first)
    assert run(Program().load(places[0]).read_config(slot, 0).store(places[1], 0)).values == (0xFFFF_FFFF,) * 2
    second = machine.plug(serve(Toy(*ALL)))
    assert ([bar(second, number) for number in range(5)], second.slot) == (places, slot)
    program = Program().store(places[1], 0).load(places[0] + toy.WILDCARD_COUNT, 8)
    assert run(program).values == (1,)
