"""A micro guest on KVM, with filters between it and its disk: they see all, and come and go while it runs."""

from __future__ import annotations

import gc
import struct
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.filters import DmaRead, DmaWrite, Filter, Ring
from bellwire.filters.builtin.count import Count
from bellwire_vmm.guests.layout import pack_nvme, unpack_nvme
from bellwire_vmm.vmm import Machine
from vfio_user import Client
from vmm.sdk import working

pytestmark = pytest.mark.kvm

SIZE, BLOCK = 1 << 20, 512
POLLED, WAITED = 100, 20


class Passing(Filter):
    """Looks at DMA for a while, and leaves in the middle of the guest's work."""

    bytes = 0

    def after_dma_read(self, read: DmaRead) -> None:
        self.bytes += read.size
        if self.bytes > POLLED * BLOCK:
            self.leave()

    def before_dma_write(self, write: DmaWrite) -> None:
        self.bytes += write.size

    def before_ring(self, ring: Ring) -> None:
        assert ring.count


def test_a_guest_s_disk_is_whole_while_filters_look_at_it_and_leave(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "numbers"
    numbers = struct.pack(f"<{SIZE // 8}Q", *range(SIZE // 8))
    image.write_bytes(numbers)
    count, passing = Count(), Passing()
    made: list[Nvme] = []

    def nvme() -> Nvme:
        made.append(Nvme(image=str(image), doorbells="shadow", queues=2))
        return made[0]

    with working(nvme, filters=[count, passing]) as connection:
        machine.plug(Client(connection))
        machine.load("nvme", pack_nvme(polled=POLLED, waited=WAITED, shadowed=True))
        assert machine.run(60).ok
        seen = unpack_nvme(machine.memory)
        assert (seen.polled, seen.waited, seen.wrong, seen.failed) == (POLLED, WAITED, 0, 0)
        assert not made[0].dma.copied
        machine.close()
    length = (POLLED + WAITED) * BLOCK
    assert image.read_bytes() == bytes(byte ^ 0xFF for byte in numbers[:length]) + numbers[length:]
    assert passing.bytes > POLLED * BLOCK
    assert sum(number for name, number in count.counts.items() if "by ioeventfd" in name) > 0
    assert count.counts["write cc"] >= 1
    made.clear()
    del count, passing
    gc.collect()  # the disk's state goes with the last that knows it
