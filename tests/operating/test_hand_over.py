"""A worker dies, and its successor goes on with the client: nothing that the client has set up is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from bellwired.workers.wire import MOVED, REFUSED
from operating.conftest import Run
from operating.instance import (
    EDITION,
    FALL,
    HANG,
    LEAVE,
    PLAIN,
    QUICK,
    Instance,
    connect,
    eventually,
    open_files,
    read,
    write,
)
from operating.varlink import Varlink
from vfio_user import (
    Client,
    Disconnected,
    IoEventFd,
    IoRegionClient,
    IoRegionFd,
    IrqIndex,
    RemoteError,
    ShadowBell,
    ShadowIoEventFd,
)
from vfio_user.io_fds import descriptors

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


def test_it_does_not_matter_how_the_worker_ends(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            kill(daemon, name, events, number)
            assert read(client, PLAIN) == 42


@pytest.mark.parametrize("status", [0, MOVED, REFUSED])
def test_a_device_that_ends_its_process_has_not_stopped_whatever_its_status(daemon: Instance, status: int) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, LEAVE, status, posted=True)
        assert f"status {status}" in events.until("died", name)["fields"]["text"]
        events.until("taken-over", name)
        assert read(client, EDITION) == 1


def test_a_device_whose_hook_was_cut_short_is_reset_unless_its_author_says_how_it_goes_on(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        write(client, LEAVE, 5, posted=True)
        events.until("taken-over", name)
        assert (read(client, PLAIN), read(client, EDITION)) == (0, 1)


def test_an_exception_that_ends_the_worker_leaves_the_client_to_a_successor(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        with pytest.raises(RemoteError) as refused:
            write(client, FALL, 1)
        assert refused.value.errno == errno.EIO
        events.until("taken-over", name)
        assert read(client, PLAIN) == 42


POISON = """
import os
import signal

from bellwire import Bar, PciDevice


class Poison(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000, repeats=True):
    "Dies of a write."

    mmio = Bar(0, size=4096)
    plain = mmio.reg(0x00)
    deadly = mmio.reg(0x04)

    def recovered(self, torn: bool) -> None:
        "Goes on."

    @deadly.write
    def deadly_written(self, _: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_command_that_kills_each_worker_fails_before_the_device_is_given_up(daemon: Instance) -> None:
    (daemon.plugins / "poison.py").write_text(POISON)
    name = daemon.add('device = "poison"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        with pytest.raises(RemoteError) as refused:
            write(client, 0x04, 1)
        assert refused.value.errno == errno.EIO
        assert read(client, PLAIN) == 42
        events.until("taken-over", name)
        about = daemon.describe(name)
        assert (about["state"], about["hand_overs"]["count"]) == ("running", 1)
        assert about["restarts"] in (2, 3), "a first worker that has lived for a moment only is one of the two"


GRUDGE = """
import os
import signal
import time

from bellwire import Bar, PciDevice


class Grudge(PciDevice, vendor=0x1234, device=0x0002, class_code=0x088000):
    "Dies or hangs of a ring."

    mmio = Bar(0, size=4096)
    count = mmio.reg(0x00, access="ro")
    deadly = mmio.doorbell(0x10)
    endless = mmio.doorbell(0x14)
    good = mmio.doorbell(0x18)

    def recovered(self, torn: bool) -> None:
        "Goes on."

    @deadly.ring
    def deadly_rung(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @endless.ring
    def endless_rung(self) -> None:
        time.sleep(60)

    @good.ring
    def good_rung(self) -> None:
        self.count += 1
"""


@pytest.mark.parametrize(("bell", "deaths"), [(0x10, 2), (0x14, 1)], ids=["dies", "hangs"])
def test_a_ring_that_no_worker_survives_is_dropped_alone(daemon: Instance, bell: int, deaths: int) -> None:
    (daemon.plugins / "grudge.py").write_text(GRUDGE)
    name = daemon.add('device = "grudge"\nhang-timeout = 1')
    with (
        connect(daemon.socket(name)) as client,
        daemon.monitor(name) as events,
        rings(client, bell, 0x18) as (bad, good),
    ):
        pid = daemon.pid(name)
        os.kill(pid, signal.SIGSTOP)
        os.eventfd_write(bad, 1)  # the worker takes both, and runs the hook of this one first
        os.eventfd_write(good, 1)
        os.kill(pid, signal.SIGCONT)
        events.until("taken-over", name)
        assert eventually(lambda: read(client, 0x00) == 1)
        assert daemon.describe(name)["restarts"] == deaths
        os.eventfd_write(good, 1)
        assert eventually(lambda: read(client, 0x00) == 2)


@contextlib.contextmanager
def rings(client: Client, *offsets: int) -> Iterator[list[int]]:
    """The eventfds of doorbells in BAR 0."""
    found = {sub.offset: sub for sub in client.io_fds(0)}
    try:
        yield [found[offset].fd for offset in offsets]
    finally:
        for fd in set().union(*map(descriptors, found.values())):
            os.close(fd)


def test_a_worker_that_hangs_is_killed_and_succeeded(daemon: Instance) -> None:
    daemon.settings(QUICK.replace("ping-timeout = 10", "ping-timeout = 0.5"))
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, HANG, 1, posted=True)
        events.until("hung", name)
        events.until("taken-over", name)
        assert read(client, EDITION) == 1


def test_clients_outlive_the_fork_server(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        os.kill(daemon.fork_server, signal.SIGKILL)
        events.until("taken-over", name)
        assert read(client, PLAIN) == 42


def test_a_client_that_was_taken_over_can_leave_and_the_next_one_is_served(daemon: Instance) -> None:
    name = daemon.add()
    with daemon.monitor(name) as events:
        with connect(daemon.socket(name)) as client:
            kill(daemon, name, events)
            write(client, PLAIN, 42)
        events.until("left", name)
        with connect(daemon.socket(name)) as client:
            assert read(client, PLAIN) == 42


@pytest.mark.parametrize("words", [["move"], ["restart", "--keep"]])
def test_a_device_moves_to_another_worker_with_its_client(daemon: Instance, run: Run, words: list[str]) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        before = daemon.pid(name)
        assert run(*words, name) == (0, "", "")
        after = daemon.describe(name)
        assert (after["state"], after["pid"] != before) == ("running", True)
        assert read(client, PLAIN) == 42
        assert after["hand_overs"]["count"] == 1
        assert after["hand_overs"]["reason"] == "it was moved by hand"
        assert 0 < after["hand_overs"]["pause_ms"] < 5000


def test_a_device_without_a_client_moves_with_its_state(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
    daemon.call("Move", name=name)
    with connect(daemon.socket(name)) as client:
        assert read(client, PLAIN) == 42


def test_a_device_that_does_not_run_is_not_moved(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    daemon.call("Stop", name=name)
    status, _, said = run("move", name)
    assert status == 1
    assert "is not running" in said


def test_status_and_metrics_tell_of_hand_overs(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)), daemon.monitor(name) as events:
        kill(daemon, name, events)
        _, told, _ = run("status", name)
    words = " ".join(told.split())
    assert re.search(
        r"Hand-overs: 1, the last after a pause of \d+ ms, because its worker was killed by SIGKILL", words
    )


def held(daemon: Instance) -> list[str]:
    """The state files that the daemon has open."""
    return [what for what in open_files(daemon.process.pid).values() if "bellwire-state" in what]


def test_a_stop_ends_the_client_and_leaves_no_descriptor(daemon: Instance) -> None:
    name = daemon.add('device = "bell"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        client.io_fds(1)
        kill(daemon, name, events)
        assert eventually(lambda: len(held(daemon)) == 1)
        daemon.call("Stop", name=name)
        with pytest.raises(Disconnected):
            read(client, 0)
    assert eventually(lambda: held(daemon) == [])


def test_a_client_whose_worker_dies_again_and_again_is_let_go(daemon: Instance) -> None:
    daemon.settings(QUICK + "restart-limit = 2\n")
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        for _ in range(2):
            kill(daemon, name, events)
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("failed", name)
        with pytest.raises(Disconnected):
            read(client, PLAIN)


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
