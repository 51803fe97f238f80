"""Bundled devices move in the middle of a session, and their guests notice nothing."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire import PciDevice
from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.serial import Serial
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.storage.disk import Disk, StorageError
from bellwire.virtio import Feature
from devices.serving import wait_until
from migration.moving import Machine, MovingDriver, NvmeMachine
from nvme.driver import Driver as NvmeDriver
from nvme.driver import transfer
from vfio_user import Client, DeviceState, MigrationFlags, RemoteError, VfioUserError

PAGE = 4096
RINGS = [{Feature.EVENT_IDX}, {Feature.RING_PACKED}]
IN, OUT = 0, 1
REQUEST = struct.Struct("<IIQ")

Answer = int | str
Access = tuple[int, int, int, int | None]
DEVICES: dict[type[PciDevice], dict[str, Any]] = {
    Bell: {},
    Edu: {},
    Serial: {},
    VirtioBlk: {"size": 1 << 20},
    VirtioConsole: {},
    VirtioNet: {"mac": "52:54:00:12:34:56", "dgram": "/nowhere/socket"},
    VirtioRng: {},
    Nvme: {"size": 1 << 20, "serial": "SERIAL"},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


@pytest.fixture
def copied(image: Path) -> Callable[[], dict[str, Any]]:
    """Options for the next disk: its image is a copy of the one before, which another device has locked."""
    images = itertools.count()
    last = [image]

    def copy() -> dict[str, Any]:
        path = image.with_name(f"disk-{next(images)}.img")
        path.write_bytes(last[0].read_bytes())
        last[0] = path
        return {"image": str(path)}

    return copy


# -- all devices: any accesses


def accesses(kind: type[PciDevice], count: int) -> Iterator[Access]:
    """Reads and writes of registers and of config space, the same each time."""
    chance = random.Random(kind.name)
    places = [
        (index, item.offset, item.size)
        for index, plan in kind.layout.bars.items()
        for item in plan.placed
        if hasattr(item, "reset") and item.size in (1, 2, 4, 8)
    ]
    places += [(7, at, 4) for at in (0x00, 0x04, 0x08, 0x10, 0x14, 0x2C, 0x3C)] * 2
    for _ in range(count):
        index, offset, size = chance.choice(places)
        write = chance.random() < 0.4 and (index, offset) != (7, 4)
        yield index, offset, size, chance.getrandbits(8 * min(size, 4)) if write else None


def done(machine: Machine, access: Access) -> Answer:
    index, offset, size, value = access
    try:
        if value is None:
            return machine.read(index, offset, size)
        machine.write(index, value, offset=offset, size=size)
    except VfioUserError as error:
        return str(error)
    return 0


@pytest.mark.parametrize("kind", DEVICES, ids=lambda kind: kind.name)
def test_the_same_accesses_give_the_same_answers_with_a_move_between_them(kind: type[PciDevice]) -> None:
    asked = list(accesses(kind, 60))
    with Machine(kind, **DEVICES[kind]) as here, Machine(kind, **DEVICES[kind]) as moved:
        pre_copy = MigrationFlags.PRE_COPY in moved.client.migration.flags()
        for number, access in enumerate(asked):
            if number == len(asked) // 2:
                moved.move(pre_copy=pre_copy)
            assert done(moved, access) == done(here, access), (number, access)


# -- devices with work under way


@pytest.mark.slow
@pytest.mark.parametrize("ring", RINGS, ids=["split", "packed"])
def test_a_virtio_disk_does_each_request_once_over_a_move(
    image: Path, copied: Callable[[], dict[str, Any]], ring: set[int]
) -> None:
    with Machine(VirtioBlk, image=str(image)) as machine:
        driver = MovingDriver(machine)
        driver.start(ring, size=64)
        queue, answers = driver.queues[0], list[bytes]()
        for lap in range(4):
            for sector in range(8):
                queue.add(REQUEST.pack(IN, 0, sector), write=[512, 1])
                queue.add(REQUEST.pack(OUT, 0, 64 + 8 * lap + sector), bytes([lap + 1]) * 512, write=[1])
            queue.kick()
            machine.move(copied)
            driver.follow()
            answers += map(queue.whole, machine.collect(queue.used, 16))
        assert sorted(answers) == sorted([bytes(range(256)) * 2 + b"\0", b"\0"] * 32)
    content = Path(machine.options["image"]).read_bytes()
    assert [content[512 * (64 + n)] for n in range(32)] == [n // 8 + 1 for n in range(32)]


@pytest.mark.slow
def test_an_nvme_controller_does_each_command_once_over_a_move(
    image: Path, copied: Callable[[], dict[str, Any]]
) -> None:
    with Machine(Nvme, image=str(image)) as machine:
        window = NvmeMachine(machine)
        driver = NvmeDriver(window)
        driver.enable()
        queues = driver.create_queues(1, 16)
        reaped = []
        for lap in range(4):
            cids = [queues.put(IoOpcode.READ, nsid=1, prp1=0x80000 + PAGE * n, dwords=(n, 0, 7)) for n in range(8)]
            cids += [driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)] if lap == 0 else []
            queues.ring()
            driver.admin.ring()
            machine.move(copied)
            window.memory = driver.memory = machine.memory
            queues.reaped.clear()
            found = queues.wait(*cids[:8])
            reaped += [each.status for each in found]
            assert bytes(machine.memory[0x80000 : 0x80000 + 4096]) == bytes(range(256)) * 16
        assert reaped == [0] * 32
        assert transfer(queues, IoOpcode.READ, 0x80000, 0, 8).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("ring", RINGS, ids=["split", "packed"])
def test_a_generator_of_random_bytes_goes_on_after_a_move(ring: set[int]) -> None:
    with Machine(VirtioRng) as machine:
        driver = MovingDriver(machine)
        driver.start(ring)
        queue = driver.queues[0]
        queue.add(write=64)
        machine.move()
        driver.follow()
        queue.kick()
        machine.wait(lambda: (answers := queue.answers()) and any(answers[0]))


@pytest.mark.slow
def test_a_virtio_card_sends_and_keeps_its_buffers_over_a_move() -> None:
    with Machine(VirtioNet, **DEVICES[VirtioNet]) as machine:
        driver = MovingDriver(machine)
        driver.start({Feature.EVENT_IDX}, range(2), size=16)
        receive, send = driver.queues[0], driver.queues[1]
        receive.add(write=1526)
        receive.kick()
        machine.move()
        driver.follow()
        send.send(bytes(12), b"\xff" * 6 + bytes(54))
        machine.wait(send.used)
        assert not receive.used()


# -- disks in memory

DISKS = {VirtioBlk: "virtio-blk", Nvme: "nvme"}


def memory(machine: Machine) -> Disk:
    """The disk of a device without an image."""
    device = machine.serving.device
    if isinstance(device, VirtioBlk):
        return device.disk
    assert isinstance(device, Nvme)
    return device.controller.namespaces.disks[0]


@pytest.mark.parametrize("kind", DISKS, ids=DISKS.values())
def test_a_disk_in_memory_moves_only_without_content(kind: type[PciDevice], caplog: pytest.LogCaptureFixture) -> None:
    with Machine(kind) as machine:
        migration, disk = machine.client.migration, memory(machine)
        machine.save()
        migration.set_state(DeviceState.RUNNING)
        machine.serving.call(lambda: disk.write([bytearray(b"content")], (1 << 20) + 512))
        for state in (DeviceState.PRE_COPY, DeviceState.STOP_COPY):
            with pytest.raises(RemoteError):
                migration.set_state(state)
        assert "the content of a disk in memory is not saved, and does not move: use an image (image=)" in caplog.text
        migration.set_state(DeviceState.RUNNING)


# -- two devices and one image


@pytest.mark.parametrize("kind", DISKS, ids=DISKS.values())
def test_an_image_goes_along(image: Path, kind: type[PciDevice]) -> None:
    with Machine(kind, image=str(image), incoming=True) as machine:
        source, client = machine.serving, machine.client
        with Machine(kind, image=str(image), incoming=True) as waiting:
            assert waiting.client.migration.state is DeviceState.STOP
            with pytest.raises(RemoteError, match="busy"):
                waiting.client.migration.set_state(DeviceState.RUNNING)
            assert waiting.client.migration.state is DeviceState.STOP
        machine.move()
        assert machine.client.migration.state is DeviceState.RUNNING
        with pytest.raises(RemoteError, match="busy"):
            client.migration.set_state(DeviceState.RUNNING)
        client.close()
        with Client.connect(source.path) as late:
            assert late.migration.state is DeviceState.STOP


@pytest.mark.parametrize("kind", DISKS, ids=DISKS.values())
def test_a_reset_gives_no_device_the_image_of_another(image: Path, kind: type[PciDevice]) -> None:
    with Machine(kind, image=str(image)) as machine, Machine(kind, image=str(image), incoming=True) as waiting:
        waiting.client.reset()
        states = [waiting.client.migration.state]
        machine.save()
        waiting.client.reset()
        assert [*states, waiting.client.migration.state] == [DeviceState.STOP, DeviceState.RUNNING]
        with pytest.raises(RemoteError, match="busy"):
            machine.client.migration.set_state(DeviceState.RUNNING)


@pytest.mark.parametrize("reached", [DeviceState.STOP, DeviceState.RESUMING], ids=["state loaded", "resuming"])
def test_a_target_that_dies_leaves_the_image_to_the_source(image: Path, reached: DeviceState) -> None:
    with Machine(Nvme, image=str(image)) as machine, Machine(Nvme, image=str(image), incoming=True) as target:
        target.client.migration.set_state(DeviceState.RESUMING)
        target.client.migration.write(machine.save())
        target.client.migration.set_state(reached)
        target.client.close()
        wait_until(lambda: not target.serving.device.core.connected)
        machine.client.migration.set_state(DeviceState.RUNNING)
        with Client.connect(target.serving.path) as late:
            assert late.migration.state is DeviceState.STOP


def test_an_image_comes_back_if_the_device_does_not_move(image: Path) -> None:
    with Machine(VirtioBlk, image=str(image)) as machine:
        machine.save()
        machine.client.migration.set_state(DeviceState.RUNNING)
        with pytest.raises(StorageError, match="another device uses it"), Machine(VirtioBlk, image=str(image)):
            pass


def test_a_device_that_waits_for_nobody_runs(image: Path) -> None:
    with Machine(VirtioBlk, image=str(image), incoming=True) as machine:
        assert machine.client.migration.state is DeviceState.RUNNING
