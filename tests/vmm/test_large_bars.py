"""BARs of 64 GiB in our VMM: placed below the reach of every host, and answered to their ends."""

from __future__ import annotations

from bellwire import Bar, PciDevice
from bellwire_vmm.machine.windows import ADDRESS_LIMIT
from bellwire_vmm.vmm import Machine
from vfio_user import Client
from vmm.program import bar
from vmm.sdk import working

SIZE = 64 << 30


class Vast(PciDevice, vendor=0x1234, device=0x64B, class_code=0x058000):
    memory = Bar(0, size=SIZE, bits=64, prefetchable=True)
    last = memory.reg(SIZE - 4)


def test_both_of_two_are_placed_and_answer_at_their_ends(machine: Machine) -> None:
    with working(Vast) as one, working(Vast) as other, machine:
        for sock in (one, other):
            device = machine.plug(Client(sock))
            at = bar(device, 0)
            assert at % SIZE == 0
            assert at + SIZE <= ADDRESS_LIMIT
            machine.platform.memory_space.write(at + SIZE - 4, b"last")
            assert machine.platform.memory_space.read(at + SIZE - 4, 4) == b"last"
            assert machine.platform.memory_space.read(at + SIZE, 4) == b"\xff" * 4
