"""Clients and callers that take more than their share, or that say nothing, hold up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncvarlink import VarlinkClientProtocol, VarlinkErrorReply, connect_unix_varlink
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from bellwired.commands.control_client import Instance as Caller
from bellwired.commands.control_client import explain
from bellwired.manager import admission, control_connection, descriptors
from bellwired.manager.admission import EACH, LOOKERS, OWN, Admission
from bellwired.manager.control_server import Server
from bellwired.manager.manager import Manager
from bellwired.places import Places
from operating.conftest import Run
from operating.instance import PATIENCE, PLAIN, Instance, connect, eventually, read
from vfio_user import Client, Disconnected, VfioUserError

NOBODY = 65534

# -- of a device


def silent(path: Path) -> socket.socket:
    """A client that connects and says nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))  # waits while the listener's queue is full
    sock.settimeout(PATIENCE)
    return sock


def test_a_client_that_says_nothing_loses_its_place_to_the_next_one(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nhello-timeout = 0.3')
    with silent(daemon.socket(name)) as first:
        with connect(daemon.socket(name)) as second:
            assert read(second, PLAIN) == 0
        assert first.recv(1) == b""
    daemon.said(f"[{name}] WARNING bellwire.worker: client gone: it has sent no VERSION within 0.3 s")


def test_a_client_that_has_said_hello_keeps_its_place(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nhello-timeout = 1')
    with Client.connect(daemon.socket(name), timeout=PATIENCE) as client, silent(daemon.socket(name)) as next_one:
        next_one.settimeout(1.5)
        with pytest.raises(TimeoutError):
            next_one.recv(1)
        assert client.read(0, PLAIN, 4)


def test_a_client_that_says_nothing_can_be_disconnected_by_hand(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\nhello-timeout = 0')
    with silent(daemon.socket(name)) as first:
        assert eventually(lambda: daemon.describe(name)["connected"])
        assert run("disconnect", name) == (0, "", "")
        assert first.recv(1) == b""


def test_a_client_may_have_as_many_maps_as_the_file_says(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nmax-maps = 16')
    with connect(daemon.socket(name)) as client:
        for number in range(16):
            client.dma_map(number << 12, 4096)
        with pytest.raises(VfioUserError) as refused:
            client.dma_map(16 << 12, 4096)
        assert refused.value.errno == errno.ENOSPC
        client.dma_unmap(0, 4096)
        client.dma_map(16 << 12, 4096)
    daemon.said("refused: DMA_MAP: more than max_dma_maps (16) ranges")


def test_a_thousand_clients_leave_no_descriptor_behind(daemon: Instance) -> None:
    name = daemon.add()
    worker = daemon.pid(name)

    def used() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{worker}/fd")), len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    connect(daemon.socket(name)).close()
    assert eventually(lambda: not daemon.describe(name)["connected"])
    before = used()
    for _ in range(1000):
        silent(daemon.socket(name)).close()

    def reached() -> bool:
        """Whether the listener's queue has room again. Then it serves this client after all others."""
        with contextlib.suppress(Disconnected):
            connect(daemon.socket(name)).close()
            return True
        return False

    assert eventually(reached)
    assert eventually(lambda: used() <= before)


# -- of the control socket


def test_a_user_who_may_only_look_has_a_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Admission()
    for uid in range(1000, 1000 + LOOKERS // EACH):
        for _ in range(EACH):
            assert not counted.refusal(uid, may_change=False)
            counted.came(uid, may_change=False)
        assert counted.refusal(uid, may_change=False) == f"user {uid} has {EACH} connections already"
    assert "users who may only look have" in counted.refusal(2000, may_change=False)
    assert not counted.refusal(0, may_change=True)
    assert not counted.refusal(999, may_change=True)
    counted.went(1000, may_change=False)
    assert not counted.refusal(1000, may_change=False)


def test_the_daemons_own_user_has_a_number_of_connections_and_root_is_always_admitted() -> None:
    counted = Admission()
    for _ in range(OWN):
        counted.came(999, may_change=True)
        counted.came(0, may_change=True)
    assert counted.refusal(999, may_change=True) == f"user 999 has {OWN} connections already"
    assert not counted.refusal(0, may_change=True)


def test_the_last_descriptors_are_for_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "used", lambda: 245)
    monkeypatch.setattr(descriptors, "limit", lambda: 256)
    assert "no descriptors: 245 of 256 are used" in admission.Admission().refusal(1000, may_change=False)
    assert not admission.Admission().refusal(999, may_change=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_idle_lookers_lock_out_neither_root_nor_themselves_without_a_word(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.settings(f'control-group = "{grp.getgrgid(NOBODY).gr_name}"')
    with instance, contextlib.ExitStack() as stack:
        monkeypatch.chdir(instance.runtime)  # the folders above are closed to others
        with another_user():
            for _ in range(EACH):
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.connect("control")
            one_more = stack.enter_context(socket.socket(socket.AF_UNIX))
            one_more.connect("control")
        one_more.settimeout(PATIENCE)
        one_more.sendall(json.dumps({"method": "org.bellwire.Manager.List", "parameters": {}}).encode() + b"\0")
        said = json.loads(one_more.recv(4096).rstrip(b"\0"))
        assert said["parameters"]["message"] == f"refused: user {NOBODY} has {EACH} connections already"
        with pytest.raises(ConnectionResetError):
            one_more.recv(1)
        with another_user():
            asyncio.run(told())
        assert instance.call("List") == {"devices": []}
        stack.close()
        with another_user():
            again = socket.socket(socket.AF_UNIX)
            again.connect("control")
        again.close()
        assert "Traceback" not in instance.log


async def told() -> None:
    """What a command says that the daemon refuses."""
    transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, "control")
    with pytest.raises(VarlinkErrorReply) as why:
        await protocol.make_proxy(VarlinkServiceInterface).GetInfo()
    transport.close()
    said = explain(why.value, Caller(Places((), (), Path())))
    assert str(said) == f"refused: user {NOBODY} has {EACH} connections already"


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_listener_that_reads_nothing_is_hung_up_on_and_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_connection, "SLOW", 0.2)
    call = json.dumps({"method": "org.bellwire.Manager.Monitor", "parameters": {}, "more": True}).encode() + b"\0"

    async def play() -> None:
        manager = Manager(Places((), (), tmp_path))
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as slow:
            listener.bind(str(tmp_path / "control"))
            listener.listen()
            server = Server(manager, listener)
            server.open()
            slow.connect(str(tmp_path / "control"))
            slow.sendall(call)
            await manager.broadcaster.heard.wait()
            async with asyncio.timeout(PATIENCE):
                while "hung up" not in caplog.text:
                    for _ in range(100):
                        manager.broadcaster.publish("disk", "trouble", {"text": "y" * 5000})
                    await asyncio.sleep(0.001)
            slow.settimeout(PATIENCE)
            size = 0
            while data := slow.recv(1 << 20):
                size += len(data)
            await server.close()
            assert 0 < size < 1 << 20

    asyncio.run(play())
    assert "a caller of the control socket was hung up on: it has read no answer for 0.2 s" in caplog.text
