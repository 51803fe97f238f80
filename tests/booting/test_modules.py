"""Loading and unloading kernel modules: what a machine says of an ``init`` or ``exit`` that does not go well."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwired.guest.channel import Channel
from bellwired.guest.console import Console
from bellwired.guest.errors import CommandTimeout, MachineError, ModuleInUse
from bellwired.guest.frames import COUNT, HEAD, STATUS, VERSION, Kind, encode
from bellwired.guest.machine import Machine
from bellwired.guest.reports import Watcher
from plugin.near import OOPS

FOREVER = None
"""The wait status of what does not end, though it can be killed."""
Statuses = Mapping[str, int | None]


def answer(agent: socket.socket, statuses: Statuses, console: Console) -> None:
    """Be the agent of a guest in which each tool, by its first word, ends with a wait status."""
    with agent, agent.makefile("rb") as stream:
        agent.sendall(encode(Kind.HELLO, 0, COUNT.pack(VERSION)))
        while head := stream.read(HEAD.size):
            length, command, kind, _ = HEAD.unpack(head)
            payload = stream.read(length)
            status: int | None = None
            if kind == Kind.START:
                status = next(status for word, status in statuses.items() if word.encode() in payload)
            elif kind == Kind.INPUT and payload and FOREVER in statuses.values():  # else it has ended before
                agent.sendall(encode(Kind.TAKEN, command, COUNT.pack(length)))
            elif kind == Kind.SIGNAL:
                status = payload[0]
            if status is None:
                continue
            agent.sendall(encode(Kind.ENDED, command, STATUS.pack(status)))
            if status == signal.SIGKILL and kind == Kind.START:
                console.feed(OOPS)  # after the status: it comes by another way


@contextlib.contextmanager
def machine(statuses: Statuses) -> Iterator[Machine]:
    watcher = Watcher()
    console = Console((watcher.feed,))
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=answer, args=(theirs, statuses, console))
    thread.start()
    hardware: Any = SimpleNamespace(console=console, watcher=watcher)
    plan: Any = SimpleNamespace(boot_time=0.5)
    with Channel(ours, MachineError) as channel:
        assert channel.wait_until_ready(20)
        yield Machine(plan, hardware, channel)
    thread.join()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "copier.ko").write_bytes(b"a module")
    return tmp_path / "copier.ko"


@pytest.mark.parametrize(("timeout", "seconds"), [(0.1, "0.1"), (None, "0.5")])
def test_an_init_that_does_not_end_is_given_up(module: Path, timeout: float | None, seconds: str) -> None:
    with (
        machine({"insmod": FOREVER}) as guest,
        pytest.raises(CommandTimeout, match=rf"loading /\S+/copier\.ko has not ended after {seconds} s$"),
    ):
        guest.load(str(module), timeout=timeout)


def test_an_exit_that_does_not_end_is_given_up() -> None:
    with (
        machine({"rmmod": FOREVER}) as guest,
        pytest.raises(CommandTimeout, match=r"unloading copier has not ended after 0\.1 s$"),
    ):
        guest.remove("copier", 0.1)


def test_an_init_that_crashes_the_kernel_is_told_with_the_report(module: Path) -> None:
    says = r"loading /\S+/copier\.ko was ended by SIGKILL: the guest's kernel reports: BUG: kernel NULL pointer"
    with machine({"insmod": signal.SIGKILL}) as guest, pytest.raises(MachineError, match=says):
        guest.insert(module)


def test_an_init_that_fails_is_told_with_its_errno(module: Path) -> None:
    with (
        machine({"insmod": 19 << 8}) as guest,
        pytest.raises(MachineError, match=rf"copier\.ko: cannot be loaded: {os.strerror(19)}"),
    ):
        guest.insert(module)


def test_a_module_that_is_in_use_is_an_error_of_its_own() -> None:
    with machine({"rmmod": 11 << 8}) as guest, pytest.raises(ModuleInUse, match="copier cannot be unloaded"):
        guest.remove("copier")
