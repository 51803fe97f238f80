"""Devices of a daemon migrate: from inside their boxes, and while their workers are killed."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack

import pytest

from bellwire.bundled.edu import DMA_START, DmaCommand, Edu
from operating.conftest import Run
from operating.instance import Instance, connect, eventually
from operating.test_hand_over import kill
from vfio_user import Client, DeviceState, RemoteError, VfioUserError
from vfio_user.written_pages import WrittenPages

STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, ERROR = (
    DeviceState.STOP,
    DeviceState.RUNNING,
    DeviceState.STOP_COPY,
    DeviceState.RESUMING,
    DeviceState.PRE_COPY,
    DeviceState.ERROR,
)
LIVENESS, PAGE, MEMORY = 4, 4096, 1 << 20


def liveness(client: Client) -> int:
    """Edu's register that inverts what is written."""
    return int.from_bytes(client.read(0, LIVENESS, 4), "little")


def save(client: Client) -> bytes:
    client.migration.set_state(STOP_COPY)
    return b"".join(iter(lambda: client.migration.read(4096), b""))


def test_a_device_moves_from_one_worker_to_another(daemon: Instance) -> None:
    here, there = daemon.add('device = "edu"'), daemon.add('device = "edu"')
    with connect(daemon.socket(here)) as source, connect(daemon.socket(there)) as target:
        source.write(0, LIVENESS, struct.pack("<I", 5))
        state = save(source)
        target.migration.set_state(RESUMING)
        target.migration.write(state)
        target.migration.set_state(RUNNING)
        assert liveness(target) == 0xFFFF_FFFA


@pytest.mark.parametrize("user", ["", 'user = "nobody"'])
def test_a_boxed_worker_logs_what_it_writes_and_its_successor_reports_all(daemon: Instance, user: str) -> None:
    if user and os.geteuid():
        pytest.skip("only root can give a device another user")
    try:
        WrittenPages().close()
    except VfioUserError as error:
        pytest.skip(str(error))
    name = daemon.add(f'device = "edu"\n{user}')
    with ExitStack() as stack:
        client, events = stack.enter_context(connect(daemon.socket(name))), stack.enter_context(daemon.monitor(name))
        memory = os.memfd_create("guest")
        stack.callback(os.close, memory)
        os.ftruncate(memory, MEMORY)
        client.dma_map(0, MEMORY, memory)
        client.write(7, 4, struct.pack("<H", 6))
        assert client.dirty.start([(0, MEMORY)], PAGE) == PAGE
        for register, value in ((Edu.dma_source, DMA_START), (Edu.dma_destination, 0x3000), (Edu.dma_count, 64)):
            client.write(0, register.offset, struct.pack("<Q", value))
        client.write(0, Edu.dma_command.offset, struct.pack("<Q", DmaCommand.START | DmaCommand.TO_GUEST))
        assert eventually(lambda: not client.read(0, Edu.dma_command.offset, 8)[0] & DmaCommand.START)
        assert client.dirty.report(0, MEMORY, PAGE) == struct.pack("<4Q", 1 << 3, 0, 0, 0)
        for _ in range(2):
            kill(daemon, name, events)
            assert client.dirty.report(0, MEMORY, PAGE) == b"\xff" * 32
            assert client.dirty.report(0, MEMORY, PAGE) == bytes(32)


def test_a_worker_that_is_killed_in_stop_leaves_a_device_that_stands_still(daemon: Instance) -> None:
    name = daemon.add('device = "edu"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        client.write(0, LIVENESS, struct.pack("<I", 5))
        client.migration.set_state(STOP)
        kill(daemon, name, events)
        assert client.migration.state is STOP
        with pytest.raises(RemoteError, match="busy"):
            liveness(client)
        client.migration.set_state(RUNNING)
        assert liveness(client) == 0xFFFF_FFFA


def test_data_that_is_cut_off_by_a_kill_can_be_read_anew(daemon: Instance) -> None:
    name = daemon.add('device = "edu"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        client.write(0, LIVENESS, struct.pack("<I", 5))
        client.migration.set_state(STOP_COPY)
        assert client.migration.read(100)
        since = daemon.now()
        kill(daemon, name, events)
        assert client.migration.state is STOP_COPY
        with pytest.raises(RemoteError):
            client.migration.read(100)
        assert daemon.said("MIG_DATA_READ: the process that gave the data has died", since)
        client.migration.set_state(STOP)
        state = save(client)
        client.migration.set_state(RESUMING)
        client.migration.write(state)
        client.migration.set_state(RUNNING)
        assert liveness(client) == 0xFFFF_FFFA


def test_data_that_is_lost_by_a_kill_is_an_error_and_what_was_loaded_is_kept(daemon: Instance) -> None:
    name = daemon.add('device = "edu"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        client.write(0, LIVENESS, struct.pack("<I", 5))
        state = save(client)
        client.reset()
        client.migration.set_state(RESUMING)
        client.migration.write(state)
        since = daemon.now()
        kill(daemon, name, events)
        assert client.migration.state is ERROR
        with pytest.raises(RemoteError):
            client.migration.set_state(RUNNING)
        assert daemon.said("the process that took the data has died", since)
        client.reset()
        client.migration.set_state(RESUMING)
        client.migration.write(state)
        client.migration.set_state(STOP)
        kill(daemon, name, events)
        client.migration.set_state(RUNNING)
        assert liveness(client) == 0xFFFF_FFFA


def test_what_would_run_code_is_refused_while_a_device_stands_still(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "virtio-blk"\n[options]\nsize = "1M"')
    with connect(daemon.socket(name)) as client:
        client.migration.set_state(STOP)
        status, _, said = run("set", name, "size=2M")
        assert (status, "stands still for a migration" in said) == (1, True)
        client.migration.set_state(RUNNING)
        assert run("set", name, "size=2M")[0] == 0
