"""vhost devices move: the back end gives the rings back in STOP, and another one goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.vhost import Vhost
from migration.moving import Machine, MovingDriver
from vfio_user import DeviceState, RemoteError
from vhost.program import Program

pytestmark = pytest.mark.slow

STOP, RUNNING = DeviceState.STOP, DeviceState.RUNNING


def end(program: Program) -> None:
    if not program.crashed:
        program.crash()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[list[Program]]:
    with contextlib.ExitStack() as stack:
        found = [Program(tmp_path / name) for name in ("here", "there")]
        for each in found:
            stack.callback(end, each)
        yield found


def options(program: Program) -> dict[str, Any]:
    return {"backend": f"unix:{program.path}", "type": "rng"}


def ask(machine: Machine, driver: MovingDriver, text: bytes) -> None:
    queue = driver.queues[0]
    queue.send(text, write=len(text))
    assert machine.collect(queue.answers, 1) == [text[::-1]]


def test_another_back_end_goes_on_where_the_first_was_stopped(programs: list[Program]) -> None:
    here, there = programs
    with Machine(Vhost, **options(here)) as machine:
        driver = MovingDriver(machine)
        driver.start()
        for text in (b"one", b"two"):
            ask(machine, driver, text)
        client = machine.client
        machine.move(lambda: options(there))
        driver.follow()
        assert client.migration.state is DeviceState.STOP_COPY
        assert "GET_VRING_BASE" in here.said
        ask(machine, driver, b"three")
        assert (here.rings[0].base, there.rings[0].base) == (2, 3)


def test_the_back_end_has_no_ring_in_stop_and_gets_it_back(programs: list[Program]) -> None:
    with Machine(Vhost, **options(programs[0])) as machine:
        driver = MovingDriver(machine)
        driver.start()
        ask(machine, driver, b"one")
        machine.client.migration.set_state(STOP)
        assert not programs[0].rings[0].enabled
        machine.client.dma_map(1 << 30, 4096)  # news that must not start the rings
        assert not programs[0].rings[0].enabled
        machine.client.migration.set_state(RUNNING)
        ask(machine, driver, b"two")


def test_rings_that_have_gone_with_the_back_end_cannot_move(programs: list[Program]) -> None:
    with Machine(Vhost, **options(programs[0])) as machine:
        driver = MovingDriver(machine)
        driver.start()
        ask(machine, driver, b"one")
        programs[0].crash()
        machine.wait(lambda: machine.serving.call(lambda: machine.serving.device.plane.backend is None))  # type: ignore[attr-defined]
        with pytest.raises(RemoteError):
            machine.client.migration.set_state(STOP)
        assert machine.client.migration.state is RUNNING


def test_what_a_back_end_writes_cannot_be_logged(programs: list[Program]) -> None:
    with Machine(Vhost, **options(programs[0])) as machine, pytest.raises(RemoteError, match="not supported"):
        machine.client.dirty.start([], 4096)
