"""Parts of a BAR that the guest reaches with no exit: the device's memory as a slot of KVM's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest

from bellwire_vmm.device.areas import outside
from bellwire_vmm.device.proxy import ProxyDevice
from vfio_user import IoEventFd, SubRegion
from vmm.program import Outcome, Program, bar
from vmm.toy import AREA, Toy

Plug = Callable[[Toy], ProxyDevice]
Run = Callable[[Program], Outcome]

BEGIN, END = 1, 2
WORD = 0x0102_0304_0506_0708
COMMAND, NO_DECODING, DECODING = 4, 0, 3


@pytest.mark.kvm
def test_a_mapped_area_is_written_and_read_with_no_exit(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(mapped=True))
    at = bar(device, 3) + AREA.offset + 8
    outcome = run(Program().mark(BEGIN).store(at, WORD, 8, times=100).mark(END).load(at, 8))
    assert outcome.exits(BEGIN, END) == (0, 0)
    assert outcome.values == (WORD,)
    assert int.from_bytes(os.pread(served.area, 8, AREA.offset + 8), "little") == WORD
    assert not [message for message in served.messages if message[0] == 3]


@pytest.mark.kvm
def test_what_lies_beside_the_area_goes_by_message(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(mapped=True))
    run(Program().store(bar(device, 3) + 8, 5))
    assert (3, 8, b"\5\0\0\0") in served.messages


@pytest.mark.kvm
def test_the_area_follows_its_bar(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(mapped=True))
    old, new = bar(device, 3), 0xD000_0000
    program = Program().config(device.slot, 0x1C, new).store(new + AREA.offset, 7).load(old + AREA.offset)
    assert run(program).values == (0xFFFF_FFFF,)
    assert os.pread(served.area, 4, AREA.offset) == b"\7\0\0\0"


@pytest.mark.kvm
def test_the_area_is_gone_while_memory_decoding_is_off(plug: Plug, run: Run) -> None:
    device = plug(served := Toy(mapped=True))
    at = bar(device, 3) + AREA.offset
    program = Program().store(at, 7).config(device.slot, COMMAND, NO_DECODING, 2).store(at, 8).load(at)
    program.config(device.slot, COMMAND, DECODING, 2).load(at)
    assert run(program).values == (0xFFFF_FFFF, 7)
    assert os.pread(served.area, 4, AREA.offset) == b"\7\0\0\0"


class ToyWithABellInItsArea(Toy):
    """Against all advice, a doorbell lies where the area does."""

    def sub_regions(self, index: int, mechanisms: frozenset[str]) -> Sequence[SubRegion]:
        if index == 3 and 3 not in self._regions:
            fd = os.eventfd(0, os.EFD_NONBLOCK)
            self._bells[fd] = 1, 0
            self._regions[3] = [IoEventFd(AREA.offset + 16, 0, fd)]
        return super().sub_regions(index, mechanisms)


@pytest.mark.kvm
def test_a_doorbell_in_an_area_still_rings(plug: Plug, run: Run) -> None:
    device = plug(served := ToyWithABellInItsArea(mapped=True))
    run(Program().store(bar(device, 3) + AREA.offset + 16, 1).load(bar(device, 0)))
    assert sum(served.counts.values()) == 1


@pytest.mark.parametrize(
    ("traps", "left"),
    [
        ([], [range(0x3000)]),
        ([range(0x1000, 0x1004)], [range(0x1000), range(0x2000, 0x3000)]),
        ([range(0xFFC, 0x1004)], [range(0x2000, 0x3000)]),
        ([range(0x2000, 0x2000)], [range(0x2000)]),
        ([range(0x1000), range(0x2000, 0x3000)], [range(0x1000, 0x2000)]),
        ([range(0x3000)], []),
        ([range(0x8000, 0x9000)], [range(0x3000)]),
    ],
)
def test_pages_with_traps_are_cut_out_of_an_area(traps: list[range], left: list[range]) -> None:
    assert outside([range(0x3000)], traps) == left
