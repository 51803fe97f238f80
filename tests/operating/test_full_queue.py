"""A service manager that does not listen, or that listens late, holds nothing up and loses nothing that counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.notify import ServiceManager
from operating.heard import Heard
from operating.instance import Instance, connect, eventually
from operating.varlink import Refused

pytestmark = pytest.mark.slow

FEW, DEVICES = 256, 500


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's socket, from which nothing is read yet."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield sock


def fill(far: socket.socket) -> int:
    """Fill the queue of ``far``, as other services do. The number of datagrams."""
    count = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
        while True:
            try:
                other.sendto(b"X=1", far.getsockname())
            except BlockingIOError:
                return count
            count += 1


def heard(far: socket.socket) -> list[str]:
    """What has arrived."""
    said = []
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(far.recv(4096).decode())
    return said


def test_a_full_queue_holds_up_no_loop_and_loses_no_ready(far: socket.socket) -> None:
    async def tell() -> list[str]:
        manager = ServiceManager()
        others = fill(far)
        begin = time.monotonic()
        for number in range(3):
            manager.tell(STATUS=f"status {number}")
            manager.tell(WATCHDOG="1")
        manager.tell(READY="1", STATUS="all run")
        manager.tell(STATUS="status 3")
        assert time.monotonic() - begin < 10  # a message that waits takes for ever
        said: list[str] = []
        async with asyncio.timeout(10):
            while "STATUS=status 3" not in said:
                said += heard(far)
                await asyncio.sleep(0)
        manager.close()
        return said[others:]

    assert asyncio.run(tell()) == ["WATCHDOG=1", "READY=1\nSTATUS=all run", "STATUS=status 3"]


def test_a_service_manager_that_starts_anew_hears_the_next_message(far: socket.socket) -> None:
    async def tell() -> None:
        manager = ServiceManager()
        manager.tell(READY="1")
        assert heard(far) == ["READY=1"]
        path = far.getsockname()
        far.close()
        os.unlink(path)
        manager.tell(STOPPING="1")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anew:
            anew.setblocking(False)
            anew.bind(path)
            async with asyncio.timeout(10):
                assert await asyncio.get_running_loop().sock_recv(anew, 100) == b"STOPPING=1"
        manager.close()

    asyncio.run(tell())


def test_a_process_without_a_free_descriptor_still_feeds_the_watchdog(far: socket.socket) -> None:
    async def tell() -> None:
        manager = ServiceManager()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open(os.devnull) as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 1, limits[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                manager.tell(WATCHDOG="1")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert heard(far) == ["WATCHDOG=1"]
        manager.close()

    asyncio.run(tell())


@contextlib.contextmanager
def under_way(count: int) -> Iterator[None]:
    """So many descriptors that are sent and not received: the kernel counts them for all processes of a user."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(count):
            socket.send_fds(ours, [b"x"], [ours.fileno()])
        yield


def test_a_worker_waits_while_too_many_descriptors_are_under_way(instance: Instance) -> None:
    path = instance.configure("one")
    instance.limits = (FEW, FEW)
    with instance, socket.socket(socket.AF_UNIX) as first:
        with under_way(FEW + 1):
            first.connect(str(path))
            instance.said("too many descriptors are under way")
        first.close()
        connect(path).close()
        assert instance.describe("one")["restarts"] == 0


@pytest.mark.slow
def test_with_256_descriptors_and_500_devices_the_service_lives_and_an_operator_is_served(
    instance: Instance, tmp_path: Path
) -> None:
    listener = Heard(tmp_path / "notify")
    instance.environment |= {"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": "1000000"}
    for number in range(DEVICES):
        instance.configure(f"device{number}", 'device = "bell"')
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    instance.limits = (FEW, FEW)
    with contextlib.closing(listener), instance:
        assert "failed: " in listener.until("READY")["STATUS"]
        for _ in range(5):
            listener.until("WATCHDOG")
        devices = instance.call("List")["devices"]
        up = [device["name"] for device in devices if device["state"] == "running"]
        refused = [device["name"] for device in devices if device["state"] == "failed"]
        assert (len(up) >= 29, len(up) + len(refused)) == (True, DEVICES)
        with pytest.raises(Refused) as why:
            instance.call("Start", name=refused[0])
        assert "of 256 descriptors are used, a device needs 6" in why.value.parameters["message"]
        assert "raise LimitNOFILE=" in why.value.parameters["message"]
        for name in up:
            connect(instance.socket(name)).close()
        for name in up[:8]:  # starts at the same time may have overdrawn it by some
            instance.call("Stop", name=name)
        instance.call("Start", name=refused[0])
        connect(instance.socket(refused[0])).close()
        assert "Traceback" not in instance.log
        assert eventually(lambda: len(os.listdir(f"/proc/{instance.process.pid}/fd")) < FEW - 16)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
