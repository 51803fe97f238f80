"""Machines with devices, saved or moved at any moment: no ring, no interrupt and no byte is lost."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bellwire
from bellwire import PciDevice
from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire_vmm.errors import StateError
from bellwire_vmm.guests.layout import (
    Memory,
    pack_blk,
    pack_edu,
    pack_nvme,
    pack_rings,
    unpack_blk,
    unpack_edu,
    unpack_nvme,
    unpack_rings,
)
from bellwire_vmm.saved import devices, file
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.vmm import Machine
from vfio_user import Client, DeviceState
from vmm.sdk import working
from vmm.test_guests import COUNT, PATHS, TRIPS

pytestmark = pytest.mark.kvm

MIB = 1 << 20
NUMBERS = struct.pack("<131072Q", *range(131072))
Plug = Callable[..., None]


@contextmanager
def plugged(kind: type[PciDevice], **options: Any) -> Iterator[Plug]:
    """Plugs a new device into a machine. It is closed with the block, after the machine."""
    with ExitStack() as stack:

        def plug(machine: Machine, *, share_memory: bool = True) -> None:
            machine.plug(Client(stack.enter_context(working(kind, **options)), timeout=30), share_memory=share_memory)

        yield plug


def check_bell(memory: Memory) -> None:
    for name, result in zip(PATHS, unpack_rings(memory), strict=True):
        assert (result.rung, result.received) == (COUNT, COUNT), name
        assert (result.answered, result.received_in_all, result.disorder) == (TRIPS, COUNT + TRIPS, 0), name


def check_edu(memory: Memory) -> None:
    seen = unpack_edu(memory)
    for kind, arrivals in ((seen.intx, 3), (seen.msi, 1)):
        assert (kind.factorial, kind.factorial_status, kind.copied) == (479001600, 1, 512)
        assert (kind.raised_arrivals, kind.arrivals) == (arrivals, arrivals + 3)


def check_blk(memory: Memory) -> None:
    seen = unpack_blk(memory)
    assert (seen.sectors, seen.polled, seen.waited, seen.wrong, seen.failed) == (2048, COUNT, TRIPS, 0, 0)


def check_nvme(memory: Memory) -> None:
    seen = unpack_nvme(memory)
    assert (seen.polled, seen.waited, seen.wrong, seen.failed) == (COUNT, TRIPS, 0, 0)


GUESTS: dict[str, tuple[type[PciDevice], dict[str, Any], bytes, Callable[[Memory], None]]] = {
    "bell": (Bell, {}, pack_rings(list(PATHS.values())), check_bell),
    "edu": (Edu, {"dma_delay": 0.001}, pack_edu(12, 512, 2), check_edu),
    "blk": (VirtioBlk, {"image": "numbers"}, pack_blk(polled=COUNT, waited=TRIPS), check_blk),
    "nvme": (Nvme, {"image": "numbers", "queues": 2}, pack_nvme(polled=COUNT, waited=TRIPS), check_nvme),
}


@pytest.mark.slow
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("name", GUESTS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moment=st.floats(0.0, 0.25), copied=st.booleans())
def test_a_guest_that_is_saved_and_restored_gives_the_results_of_an_undisturbed_run(
    name: str, moment: float, copied: bool, tmp_path: Path
) -> None:
    kind, options, parameters, check = GUESTS[name]
    if "image" in options:
        (tmp_path / "numbers").write_bytes(NUMBERS)
        options = options | {"image": str(tmp_path / "numbers")}
    with open(tmp_path / "saved", "w+b") as kept:
        kept.truncate(0)
        with plugged(kind, **options) as plug, Machine(16 * MIB) as machine:
            plug(machine)
            machine.load(name, parameters)
            timer = threading.Timer(moment, machine.stop)
            timer.start()
            first = machine.resume(60)
            timer.cancel()
            timer.join()
            assert first.ok or first.code is None, first
            with devices.stopped(machine):
                file.write(kept.fileno(), machine.memory, saved.shape_of(machine), saved.take(machine))
        if first.code is not None:
            return
        with plugged(kind, **options) as plug, Machine(16 * MIB) as machine:
            # Without shared memory RAM is the file's, copy-on-write; virtio's queues lie in shared memory.
            plug(machine, share_memory=copied or name == "blk")
            found = file.SavedFile(kept.fileno())
            saved.check(machine, found.shape)
            found.load(machine.memory)
            saved.give(machine, found.state)
            devices.start(machine)
            result = machine.resume(60)
            assert result.ok, result
            check(machine.memory)


class Refusing(Edu):
    """A device whose state cannot be taken."""

    def saving(self) -> None:
        """Refuse."""
        raise bellwire.StateError("not now")


def test_a_device_that_refuses_is_named_and_goes_on() -> None:
    with plugged(Refusing) as plug, Machine(16 * MIB) as machine:
        plug(machine)
        said = r"^slot 1, 1234:11e8: DEVICE_FEATURE failed at the other end: .*; its server's log says why$"
        with pytest.raises(StateError, match=said), devices.stopped(machine):
            pass
        assert machine.devices[0].peer.client.migration.state is DeviceState.RUNNING


def test_a_device_of_another_kind_is_refused_by_name() -> None:
    with plugged(Edu) as plug, Machine(16 * MIB) as machine, plugged(Bell) as other, Machine(16 * MIB) as there:
        plug(machine)
        other(there)
        with pytest.raises(StateError, match=r"^slot 1 is 1234:be11 here, and was 1234:11e8: they differ in id, "):
            saved.check(there, saved.shape_of(machine))
