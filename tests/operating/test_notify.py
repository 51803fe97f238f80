"""What the service manager is told (sd_notify(3))."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired import passed
from bellwired.errors import CommandError
from bellwired.manager.main import STATUS_INTERVAL
from bellwired.passed import listeners
from operating.heard import Heard
from operating.instance import QUICK, Instance, connect

pytestmark = pytest.mark.slow

WATCHDOG = 0.6  # seconds


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Heard]]:
    """A daemon that feeds a watchdog, and serves one device."""
    folder = tmp_path_factory.mktemp("watched")
    instance, listener = Instance(folder), Heard(folder / "notify")
    instance.environment |= {"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": f"{WATCHDOG * 1e6:.0f}"}
    instance.configure("one")
    with instance, contextlib.closing(listener):
        yield instance, listener


@pytest.fixture
def heard(tmp_path: Path, instance: Instance) -> Iterator[Heard]:
    listener = Heard(tmp_path / "notify")
    instance.environment["NOTIFY_SOCKET"] = str(listener.path)
    with contextlib.closing(listener):
        yield listener


def test_it_is_ready_once_every_device_accepts_clients(instance: Instance, heard: Heard) -> None:
    paths = [instance.configure(name) for name in ("one", "two", "three")]
    instance.start()
    try:
        assert heard.until("READY")["STATUS"] == "3 of 3 devices running, 0 with a client"
        for path in paths:
            connect(path).close()
    finally:
        instance.__exit__(None, None, None)


def test_a_device_that_fails_does_not_keep_it_from_being_ready_and_is_named(instance: Instance, heard: Heard) -> None:
    instance.configure("good")
    instance.configure("bad", 'device = "probe"\noptions.pace = "quick"')
    instance.configure("typo", 'devise = "probe"')
    with instance:
        assert heard.until("READY")["STATUS"] == "1 of 3 devices running, 0 with a client; failed: bad, typo"


def test_the_status_text_follows_what_happens_at_once(instance: Instance, heard: Heard) -> None:
    path = instance.configure("one")
    with instance:
        heard.until("READY")
        begun = time.monotonic()
        for _ in range(4):
            with connect(path):
                while heard.until("STATUS")["STATUS"] != "1 of 1 devices running, 1 with a client":
                    pass
            while heard.until("STATUS")["STATUS"] != "1 of 1 devices running, 0 with a client":
                pass
        assert time.monotonic() - begun < 4 * STATUS_INTERVAL  # of eight changes


def test_a_start_that_takes_long_is_given_more_time_until_it_is_over(instance: Instance, heard: Heard) -> None:
    instance.environment["WATCHDOG_USEC"] = "200000"  # for it to tell of itself often
    instance.settings(QUICK + "start-timeout = 0.5\nrestart-limit = 0")
    instance.configure("slow", 'device = "probe"\noptions.mood = "sleeps"')
    with instance:
        assert int(heard.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
        assert "EXTEND_TIMEOUT_USEC" not in heard.until("READY")
        assert "EXTEND_TIMEOUT_USEC" not in heard.until("STATUS")


def test_a_stop_is_given_the_time_that_its_workers_are(instance: Instance, heard: Heard) -> None:
    instance.settings(QUICK.replace("stop-timeout = 10", "stop-timeout = 100"))
    with instance:
        instance.stop()
    assert int(heard.until("STOPPING")["EXTEND_TIMEOUT_USEC"]) > 100_000_000


def test_a_reload_is_announced_with_its_time_and_ended_by_ready(watched: tuple[Instance, Heard]) -> None:
    instance, heard = watched
    before = time.monotonic_ns() // 1000
    instance.configure("two")
    instance.process.send_signal(signal.SIGHUP)
    assert before <= int(heard.until("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert heard.until("READY")["STATUS"] == "2 of 2 devices running, 0 with a client"


def test_a_reload_that_fails_is_ended_by_ready_too(watched: tuple[Instance, Heard]) -> None:
    instance, heard = watched
    instance.settings("nonsense")
    instance.process.send_signal(signal.SIGHUP)
    heard.until("RELOADING")
    heard.until("READY")


def test_the_watchdog_is_fed_at_half_its_interval(watched: tuple[Instance, Heard]) -> None:
    _, heard = watched
    fed = []
    for _ in range(6):
        heard.until("WATCHDOG")
        fed.append(time.monotonic())
    assert statistics.median(later - before for before, later in itertools.pairwise(fed)) < WATCHDOG


def test_the_watchdog_is_not_fed_while_the_fork_server_does_not_answer(watched: tuple[Instance, Heard]) -> None:
    instance, heard = watched
    os.kill(instance.fork_server, signal.SIGSTOP)
    while not heard.silence("WATCHDOG", 2 * WATCHDOG):  # what was under way
        pass
    os.kill(instance.fork_server, signal.SIGCONT)
    heard.until("WATCHDOG")


def test_the_status_counts_clients(watched: tuple[Instance, Heard]) -> None:
    instance, heard = watched
    with connect(instance.socket("one")):
        while ", 1 with a client" not in heard.until("STATUS")["STATUS"]:
            pass


def test_a_stop_is_announced(instance: Instance, heard: Heard) -> None:
    with instance:
        instance.stop()
    assert heard.until("STOPPING")["STATUS"] == "stopping"


def test_a_watchdog_that_is_meant_for_another_process_is_none_of_ours(instance: Instance, heard: Heard) -> None:
    instance.environment |= {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with instance:
        heard.until("READY")
        assert heard.silence("WATCHDOG", 0.3)


def test_a_service_manager_that_does_not_listen_is_no_reason_to_stop(instance: Instance, tmp_path: Path) -> None:
    instance.environment["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    with instance:
        assert instance.stop() == 0


def test_a_descriptor_that_is_no_socket_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(passed, "passed", lambda: {file.fileno(): "control"})
        with pytest.raises(CommandError, match=f"descriptor {file.fileno()}, control by LISTEN_FDNAMES"):
            listeners()
