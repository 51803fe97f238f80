"""Micro guests on KVM whose devices' workers are killed: rings by ioeventfd, ioregionfd and shadow go to successors."""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bellwire.bundled.bell import MATCH, Bell
from bellwire_vmm.guests.layout import Ring, Space, pack_nvme, pack_rings, unpack_nvme, unpack_rings
from bellwire_vmm.vmm import Machine
from bellwired.manager.life import SHORT
from operating.instance import PATIENCE, PLUGINS, QUICK, Instance
from vfio_user import Client, Mechanism
from vmm.program import Outcome, Program, bar

pytestmark = [pytest.mark.kvm, pytest.mark.daemon]

SIZE, BLOCK = 1 << 20, 512
POLLED, WAITED = 500, 20
RINGS = 50
BETWEEN = 0.1  # seconds
LONG_ENOUGH = SHORT, SHORT + BETWEEN
"""How long a worker lives, in seconds. What several workers died of soon is dropped, which is not tested here."""
COUNT, TRIPS, KILLS = 400, 100, 100
ring = partial(Ring, count=COUNT, roundtrips=TRIPS)
PATHS = {
    "ioeventfd": ring(bar=1, offset=Bell.wildcard.offset, counter=Bell.wildcard_count.offset),
    "datamatch": ring(bar=1, offset=Bell.datamatch.offset, counter=Bell.datamatch_count.offset, value=MATCH),
    "ports": ring(bar=2, offset=Bell.pio.offset, counter=Bell.pio_count.offset, space=Space.PORTS),
    "ioregionfd": ring(
        bar=1, offset=Bell.value.offset, value=None, counter=Bell.value_count.offset, errors=Bell.value_errors.offset
    ),
    "shadow": ring(
        bar=1, offset=Bell.latest.offset, value=None, counter=Bell.latest_count.offset, errors=Bell.latest_errors.offset
    ),
    "region": ring(
        bar=1, offset=Bell.region.offset, value=None, counter=Bell.acked_count.offset, errors=Bell.acked_errors.offset
    ),
}


@pytest.fixture
def daemon(nothing_left_behind: None, tmp_path: Path) -> Iterator[Instance]:
    with Instance(tmp_path / "daemon", QUICK + "restart-limit = 1000\n") as daemon:
        yield daemon


def kill(daemon: Instance, name: str) -> None:
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("taken-over", name)


def test_doorbells_of_every_kind_ring_the_successor(
    daemon: Instance, machine: Machine, run: Callable[[Program], Outcome]
) -> None:
    name = daemon.add('device = "bell"')
    bell = machine.plug(Client.connect(daemon.socket(name), timeout=PATIENCE))
    mechanisms = {route.mechanism for route in bell.routes()}
    assert {Mechanism.IOEVENTFD, Mechanism.IOEVENTFD_DATAMATCH} <= mechanisms
    control, bells = bar(bell, 0), bar(bell, 1)
    program = Program().store(bells + Bell.wildcard.offset, 1, times=RINGS)
    program.store(bells + Bell.value.offset, 1).store(bells + Bell.latest.offset, 1)
    for counter in (Bell.wildcard_count, Bell.value_count, Bell.value_errors, Bell.latest_value):
        program.load(control + counter.offset, counter.size)
    for _ in range(2):
        kill(daemon, name)
        assert run(program).values == (RINGS, 1, 0, 1)
    machine.close()


@pytest.mark.timeout(600)
@pytest.mark.long
def test_no_ring_is_lost_though_the_worker_is_killed_at_any_moment(daemon: Instance, machine: Machine) -> None:
    """A guest rings by every mechanism, reads the counts back, and waits for an interrupt for each of some rings."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
    print(f"CHAOS_SEED={seed}")
    chance, over, pauses = random.Random(seed), threading.Event(), list[float]()
    shutil.copyfile(PLUGINS / "ringer.py", daemon.plugins / "ringer.py")
    name = daemon.add('device = "ringer"')
    bell = machine.plug(Client.connect(daemon.socket(name), timeout=PATIENCE))
    used = {route.mechanism.partition(" ")[0] for route in bell.routes()}
    assert used == {"ioeventfd", "ioregionfd", "shadow"}

    def go_on() -> None:
        while not over.wait(chance.uniform(*LONG_ENOUGH)):
            kill(daemon, name)
            pauses.append(daemon.describe(name)["hand_overs"]["pause_ms"])

    killer = threading.Thread(target=go_on)
    killer.start()
    try:
        while len(pauses) < KILLS:
            machine.load("bell", pack_rings(list(PATHS.values())))
            assert machine.run(120).ok
            for path, seen in zip(PATHS, unpack_rings(machine.memory), strict=True):
                assert (seen.rung, seen.answered, seen.disorder) == (COUNT, TRIPS, 0), (path, seen[:6])
                if PATHS[path].counter is not None:
                    assert seen.received >= COUNT, path
                    assert seen.received_in_all >= COUNT + TRIPS, path
                if path in ("ioregionfd", "region"):
                    assert seen.received_in_all == COUNT + TRIPS, path
    finally:
        over.set()
        killer.join()
    print(f"{len(pauses)} deaths; pauses in ms: median {statistics.median(pauses):.0f}, longest {max(pauses):.0f}")
    machine.close()


def test_a_guest_s_disk_is_whole_though_its_worker_was_killed_again_and_again(
    daemon: Instance, machine: Machine, tmp_path: Path
) -> None:
    image = tmp_path / "numbers"
    numbers = struct.pack(f"<{SIZE // 8}Q", *range(SIZE // 8))
    image.write_bytes(numbers)
    name = daemon.add(f'device = "nvme"\n[options]\nimage = "{image}"\ndoorbells = "shadow"\nqueues = 2\n')
    machine.plug(Client.connect(daemon.socket(name), timeout=PATIENCE))
    machine.load("nvme", pack_nvme(polled=POLLED, waited=WAITED, shadowed=True))
    over, killed = threading.Event(), []

    def go_on() -> None:
        while not over.wait(LONG_ENOUGH[1]):
            kill(daemon, name)
            killed.append(name)

    killer = threading.Thread(target=go_on)
    killer.start()
    try:
        assert machine.run(60).ok
    finally:
        over.set()
        killer.join()
    seen = unpack_nvme(machine.memory)
    assert (seen.polled, seen.waited, seen.wrong, seen.failed) == (POLLED, WAITED, 0, 0)
    assert killed
    machine.close()
    length = (POLLED + WAITED) * BLOCK
    assert image.read_bytes() == bytes(byte ^ 0xFF for byte in numbers[:length]) + numbers[length:]
