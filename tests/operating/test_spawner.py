"""The manager's end of the fork server, with a real one at the other end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from bellwired.workers.spawner import Spawner

pytestmark = pytest.mark.slow

PATIENCE = 10.0


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_a_fork_server_that_cannot_be_started_is_tried_again_until_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, open_fds: set[int]
) -> None:
    async def live() -> None:
        before, spawner = children(), Spawner()
        spawner.open()
        assert await spawner.ping()
        (server,) = children() - before
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(sys, "executable", "/no/such/python")
            os.kill(server, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                while caplog.text.count("cannot be started: No such file or directory; trying again") < 2:
                    await asyncio.sleep(0.01)
        assert await spawner.ping()
        await spawner.close()
        assert children() == before

    asyncio.run(live())
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds


def test_a_manager_may_end_while_there_is_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        before, spawner = children(), Spawner()
        spawner.open()
        assert await spawner.ping()
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        os.kill((children() - before).pop(), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while children() - before:
                await asyncio.sleep(0.01)
        await spawner.close()

    asyncio.run(live())
