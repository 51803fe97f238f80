"""Snapshots of the bundled devices with any bytes in their state: refused, or run until a reset mends everything."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bellwire import GuestError, StateError
from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.serial import Serial
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.declare.saved import SavedBytes
from bellwire.testing import Guest
from bellwire.virtio import Feature, VirtioDevice
from fuzz.fuzzing import INTERESTING, fuzz
from nvme.driver import Driver as NvmeDriver
from nvme.driver import TestMachine
from virtio.driver import Driver as VirtioDriver

Change = tuple[int, int, int, int]
Make = Callable[[Path], Guest[Any]]
MEMORY = 1 << 20


def used_nvme(_: Path) -> Guest[Any]:
    guest = Guest(Nvme, memory=MEMORY, size=1 << 20, queues=4)
    driver = NvmeDriver(TestMachine(guest))
    driver.enable()
    queues = driver.create_queues(1, 8)
    driver.create_queues(2, 4)
    queues.put(IoOpcode.READ, nsid=1, prp1=0x8000, dwords=(0,))
    queues.ring()
    queues.put(IoOpcode.FLUSH, nsid=1)
    return guest


def used_virtio(kind: type[VirtioDevice], *features: int, **options: Any) -> Make:
    def make(near: Path) -> Guest[Any]:
        driver = VirtioDriver(kind, memory=MEMORY, **options, **({"local": near} if kind is VirtioNet else {}))
        offered = driver.offered()
        driver.start(set(features) & offered, range(driver.common(0x12, 2)), size=8)
        for queue in driver.queues.values():
            queue.add(b"x" * 16, write=[64])
        return driver.guest

    return make


DEVICES: list[Make] = [
    used_nvme,
    used_nvme,
    used_virtio(VirtioBlk, size=MEMORY),
    used_virtio(VirtioNet, Feature.RING_PACKED, Feature.EVENT_IDX),
    used_virtio(VirtioConsole, Feature.EVENT_IDX),
    used_virtio(VirtioRng, Feature.RING_PACKED),
    lambda _: Guest(Serial, memory=MEMORY),
    lambda _: Guest(Bell, memory=MEMORY),
    lambda _: Guest(Edu, memory=MEMORY),
]


def spoil(guest: Guest[Any], changes: list[Change]) -> None:
    """Change bytes of saved fields, registers, config space and MSI-X, as if in the snapshot that is restored next."""
    state = guest.device.core.state
    cells = [
        cell
        for cell in (*state.saved.values(), *state.registers.values(), state.config, state.msix, state.pba)
        if len(cell)
    ]
    large = [cell for item, cell in state.saved.items() if isinstance(item, SavedBytes)]
    for which, where, number, size in changes:
        cell = (large * 2 + cells)[which % (2 * len(large) + len(cells))]
        at = where % len(cell)
        data = (number & (1 << 8 * size) - 1).to_bytes(size, "little")[: len(cell) - at]
        cell[at : at + len(data)] = data


def use(guest: Guest[Any]) -> None:
    """Let the device work, and touch all its registers."""
    for _ in range(3):
        with contextlib.suppress(GuestError):
            guest.advance(0.01)
    for index, plan in guest.device.layout.bars.items():
        for at in range(0, min(plan.bar.size, 0x1100), 4):
            with contextlib.suppress(GuestError):
                guest.read(index, at, 4)
        for at in range(0x1000, 0x1028, 4) if plan.bar.size > 0x1028 else ():
            with contextlib.suppress(GuestError):
                guest.write(index, 3, offset=at, size=4)
    with contextlib.suppress(GuestError):
        guest.advance(0.01)


def attack(drawn: tuple[int, list[Change]]) -> None:
    kind, changes = drawn
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, DEVICES[kind](Path(folder, "s")) as guest:
        core = guest.device.core
        spoil(guest, changes)
        with contextlib.suppress(StateError, GuestError):
            core.restore(core.snapshot())
        use(guest)
        core.reset()
        guest.enable()
        assert core.snapshot()[:64]
        use(guest)


CHANGES = st.tuples(
    st.integers(0, 63),
    st.integers(0, 255) | st.integers(0, 1 << 16),
    st.sampled_from(INTERESTING) | st.integers(0, 70000),
    st.sampled_from((1, 2, 4, 8)),
)
INPUTS = st.tuples(st.integers(0, len(DEVICES) - 1), st.lists(CHANGES, min_size=1, max_size=6))
_, test_briefly, test_long = fuzz(attack, INPUTS)
