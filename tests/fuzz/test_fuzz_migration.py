"""A client that migrates, logs, resets and spoils data in any order. No device is left half stopped."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from bellwire import PciDevice
from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.virtio_blk import VirtioBlk
from migration.moving import Machine
from vfio_user import DeviceState, FeatureFlags, RemoteError
from vfio_user.device_states import STILL

pytestmark = pytest.mark.slow

STEPS = 400
MEMORY, PAGE = 1 << 20, 4096


class Fuzz:
    """Steps on ``machine``, as ``chance`` has it."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self.client, self.chance = machine.client, chance
        self.saved = b""
        go, log = self.client.migration, self.client.dirty
        anywhere = chance.randrange
        self.steps: list[Callable[[], object]] = [
            *[lambda: go.set_state(DeviceState(anywhere(8)))] * 5,
            self.save,
            self.restore,
            lambda: self.client.write(0, anywhere(0, 64, 4), chance.randbytes(4)),
            lambda: self.client.read(0, anywhere(0, 64, 4), 4),
            self.client.reset,
            lambda: log.start([(anywhere(MEMORY), anywhere(1, MEMORY)) for _ in range(anywhere(3))], 1 << anywhere(20)),
            lambda: log.report(anywhere(2 * MEMORY), anywhere(1, 2 * MEMORY), 1 << anywhere(9, 20)),
            log.stop,
            self.client.dma_unmap_all,
            self.map,
            lambda: self.client.device_feature(
                FeatureFlags(chance.choice([1, 2, 4, 5, 6, 7]) << 16), anywhere(12), chance.randbytes(anywhere(40)), 200
            ),
        ]

    def save(self) -> None:
        self.saved += self.client.migration.read(self.chance.choice([0, 1, 100, 1 << 20]))

    def restore(self) -> None:
        data = bytearray(self.saved)
        if data and self.chance.random() < 0.4:
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        if self.chance.random() < 0.2:
            del data[self.chance.randrange(len(data) + 1) :]
        self.saved = b""
        self.client.migration.write(bytes(data))

    def map(self) -> None:
        fd = os.memfd_create("fuzz")
        os.ftruncate(fd, 16 * PAGE)
        try:
            self.client.dma_map(self.chance.randrange(0, 2 * MEMORY, 16 * PAGE), 16 * PAGE, fd)
        finally:
            os.close(fd)


@pytest.mark.parametrize("kind", [Edu, VirtioBlk, Nvme], ids=lambda kind: kind.name)
def test_any_order_of_steps_leaves_the_device_in_one_piece(kind: type[PciDevice]) -> None:
    options = {} if kind is Edu else {"size": 1 << 20}
    with Machine(kind, **options) as machine:
        fuzz = Fuzz(machine, random.Random(kind.name))
        core = machine.serving.device.core
        for _ in range(STEPS):
            with suppress(RemoteError):
                fuzz.chance.choice(fuzz.steps)()
            state = machine.client.migration.state
            assert machine.serving.call(lambda: core.still) is (state in STILL)
        assert core.tally.failures == 0
