"""What a worker or a daemon has sent before its end is read to the last word."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from bellwired.commands import control_client
from bellwired.errors import CommandError
from bellwired.manager.control import Control
from bellwired.workers import wire
from bellwired.workers.wire import Ask, Drop, Report
from bellwired.workers.worker_channel import WorkerChannel


@pytest.mark.parametrize("peek", [False, True])
def test_a_worker_that_ends_with_an_unread_question_is_heard_to_the_end(*, peek: bool) -> None:
    manager, worker = wire.pair()
    with manager:
        with worker:
            wire.send(manager, Ask(1, "ping"))
            wire.send(worker, Drop(["map 1"]))
            wire.send(worker, Report("refused", {"error": "no"}))
        heard = []
        while (received := wire.receive(manager, peek=peek)) is not None:
            heard.append(type(received[0]))
            if peek:
                wire.discard(manager)
        assert heard == [Drop, Report]


def test_whoever_asks_a_worker_that_ends_hears_that_it_was_the_worker() -> None:
    async def ask() -> None:
        channel = WorkerChannel("disk", lambda *_: None)
        question = asyncio.ensure_future(channel.ask("regs", 30))
        await asyncio.sleep(0)
        channel.close()
        with pytest.raises(CommandError, match=r"^disk: its worker has ended$"):
            await question

    asyncio.run(ask())


def test_a_command_hears_all_that_a_daemon_has_said_before_it_hung_up(tmp_path: Path) -> None:
    kinds = ["connected", "left", "stopping"]

    def reply(kind: str) -> bytes:
        event = {"time": 1.0, "device": "one", "kind": kind, "fields": {}}
        return json.dumps({"parameters": {"event": event}, "continues": kind != kinds[-1]}).encode() + b"\0"

    async def listen() -> list[str]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "control"))
            listener.listen()
            transport, protocol = await control_client._open(tmp_path / "control")
            daemon, _ = listener.accept()
            daemon.setblocking(False)

            async def speak() -> None:
                with daemon:
                    await loop.sock_recv(daemon, 4096)
                    daemon.send(b"".join(map(reply, kinds)))

            speaks = asyncio.ensure_future(speak())
            heard = [event["event"]["kind"] async for event in protocol.make_proxy(Control).Monitor()]
            await speaks
            transport.close()
            await asyncio.sleep(0)
            return heard

    assert asyncio.run(listen()) == kinds
