"""A worker dies, and its successor goes on with the client: nothing that the client has set up is lost."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from operating.instance import PLAIN, Instance, connect, read, write
from operating.varlink import Varlink
from vfio_user import Client, IoEventFd, IoRegionClient, IoRegionFd, IrqIndex, ShadowBell, ShadowIoEventFd

IRQ_NOW, WILDCARD_COUNT, VALUE_COUNT, LATEST_VALUE, ACKED_COUNT = 0x08, 0x40, 0x50, 0xDC, 0x60
WILDCARD, VALUE, LATEST, REGION = 0x000, 0x020, 0x040, 0x100


def kill(daemon: Instance, name: str, events: Varlink, number: signal.Signals = signal.SIGKILL) -> None:
    """End the worker, and wait until another one has taken over."""
    os.kill(daemon.pid(name), number)
    events.until("taken-over", name)


@pytest.fixture
def bell(daemon: Instance) -> Iterator[tuple[Client, Varlink, str]]:
    name = daemon.add('device = "bell"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        yield client, events, name


def test_registers_are_as_before(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        for _ in range(2):
            kill(daemon, name, events)
            assert read(client, PLAIN) == 42
        assert daemon.describe(name)["client"]["pid"] == os.getpid()


def test_interrupts_go_where_the_client_has_asked_for(daemon: Instance, bell: tuple[Client, Varlink, str]) -> None:
    client, events, name = bell
    with ExitStack() as stack:
        fds = [os.eventfd(0) for _ in range(8)]
        for fd in fds:
            stack.callback(os.close, fd)
        client.trigger_eventfds(IrqIndex.MSIX, 0, fds)
        client.release_eventfds(IrqIndex.MSIX, 3, 1)
        kill(daemon, name, events)
        write(client, IRQ_NOW, 3)
        write(client, IRQ_NOW, 5)
        assert os.eventfd_read(fds[5]) == 1
        assert not select.select([fds[3]], [], [], 0)[0]


def test_doorbells_ring_the_successor(daemon: Instance, bell: tuple[Client, Varlink, str]) -> None:
    client, events, name = bell
    subs = {sub.offset: sub for sub in client.io_fds(1)}
    wildcard, value, latest, region = (subs[at] for at in (WILDCARD, VALUE, LATEST, REGION))
    assert isinstance(wildcard, IoEventFd)
    assert isinstance(value, IoRegionFd)
    assert isinstance(latest, ShadowIoEventFd)
    assert isinstance(region, IoRegionFd)
    with (
        closing(IoRegionClient(value.fd)) as values,
        closing(IoRegionClient(region.fd)) as commands,
        closing(ShadowBell(latest)) as shadow,
    ):
        for turn in (1, 2, 3):
            os.eventfd_write(wildcard.fd, 1)
            values.post(value.user_data, 0, turn.to_bytes(4, "little"))
            shadow.ring(turn.to_bytes(4, "little"))
            commands.write(region.user_data, 0, turn.to_bytes(4, "little"))
            assert [read(client, at) for at in (WILDCARD_COUNT, VALUE_COUNT, LATEST_VALUE, ACKED_COUNT)] == [turn] * 4
            assert commands.read(region.user_data, 0, 4) == turn.to_bytes(4, "little")
            kill(daemon, name, events)
