"""A worker that fails is started again; nobody else notices."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.model.limited import BURST
from operating.instance import EDITION, HANG, LEAVE, PLAIN, QUICK, Instance, connect, eventually, over, read, write
from operating.varlink import Refused
from vfio_user import Client, Disconnected

IMPATIENT = QUICK.replace("stop-timeout = 10", "stop-timeout = 0.3")


def test_devices_accept_clients(daemon: Instance) -> None:
    with connect(daemon.socket(daemon.add())) as client:
        write(client, PLAIN, 42)
        assert read(client, PLAIN) == 42


def test_a_killed_worker_is_started_again_and_counted(daemon: Instance) -> None:
    name = daemon.add()
    before = daemon.pid(name)
    with daemon.monitor(name) as events:
        os.kill(before, signal.SIGKILL)
        assert "was killed by SIGKILL" in events.until("died", name)["fields"]["text"]
        events.until("restarted", name)
        events.until("started", name)
    after = daemon.describe(name)
    assert after["restarts"] == 1
    assert after["state"] == "running"
    assert after["pid"] not in (0, before)


def test_a_client_that_connects_while_no_worker_is_there_waits_and_is_served(daemon: Instance) -> None:
    daemon.settings(QUICK.replace("restart-delay = 0.02", "restart-delay = 0.5").replace("max = 0.2", "max = 0.5"))
    name = daemon.add()
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("died", name)
        with connect(daemon.socket(name)) as client:
            assert read(client, EDITION) == 1
        assert daemon.describe(name)["restarts"] == 1


def test_the_others_never_notice(daemon: Instance) -> None:
    lucky, unlucky = daemon.add(), daemon.add()
    pid = daemon.pid(lucky)
    with connect(daemon.socket(lucky)) as client, daemon.monitor(unlucky) as events:
        write(client, PLAIN, 7)
        os.kill(daemon.pid(unlucky), signal.SIGKILL)
        events.until("started", unlucky)
        assert read(client, PLAIN) == 7
    assert daemon.pid(lucky) == pid
    assert daemon.describe(lucky)["restarts"] == 0


def test_a_status_other_than_0_is_told_and_the_worker_started_again(daemon: Instance) -> None:
    name = daemon.add()
    with daemon.monitor(name) as events, connect(daemon.socket(name)) as client:
        write(client, LEAVE, 5, posted=True)
        assert "ended with status 5" in events.until("died", name)["fields"]["text"]
        events.until("taken-over", name)


def test_a_device_whose_worker_is_told_to_end_is_stopped_and_its_socket_gone(daemon: Instance) -> None:
    name = daemon.add()
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGTERM)
        events.until("stopped", name)
    assert daemon.describe(name)["state"] == "stopped"
    assert not daemon.socket(name).exists()


def test_restart_always_starts_it_again_even_then(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nrestart = "always"')
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGTERM)
        events.until("started", name)


def test_restart_no_gives_it_up_at_once(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nrestart = "no"')
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("failed", name)
    assert daemon.describe(name)["state"] == "failed"
    assert not daemon.socket(name).exists()


def test_the_wait_grows_and_after_the_limit_the_device_is_given_up(daemon: Instance) -> None:
    daemon.settings("restart-delay = 0.01\nrestart-delay-max = 0.2\nrestart-limit = 4")
    name = daemon.add('device = "probe"\nautostart = false\noptions.mood = "leaves"')
    with daemon.monitor(name) as events:
        with pytest.raises(Refused) as refused:
            daemon.call("Start", name=name)
        assert "ended with status 9; it will be tried again" in refused.value.parameters["message"]
        died, restarted = [events.until("died")["time"]], []
        for _ in range(4):
            restarted.append(events.until("restarted")["time"])
            died.append(events.until("died")["time"])
        text = events.until("failed")["fields"]["text"]
        assert "5 times in 300 s" in text
        assert text.count("ended with status 9") == 1, "each death is told without those before"
    waits = [again - end for end, again in zip(died, restarted, strict=False)]
    assert all(wait > 0.009 * 2**turn for turn, wait in enumerate(waits))
    assert daemon.describe(name)["state"] == "failed"
    with pytest.raises(Disconnected, match="No such file"):
        Client.connect(daemon.socket(name))


def test_a_device_that_was_given_up_can_be_started_again(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nrestart = "no"')
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("failed", name)
    daemon.call("Start", name=name)
    connect(daemon.socket(name)).close()


def test_a_worker_that_hangs_is_killed_and_another_started(daemon: Instance) -> None:
    name = daemon.add()
    daemon.settings(QUICK.replace("ping-timeout = 10", "ping-timeout = 0.5"))
    with daemon.monitor(name) as events, connect(daemon.socket(name)) as client:
        pid = daemon.pid(name)
        write(client, HANG, 1, posted=True)
        assert "has not answered within 0.5 s: killing it" in events.until("hung", name)["fields"]["text"]
        events.until("taken-over", name)
        assert over(pid)
    connect(daemon.socket(name)).close()


def test_a_device_that_hangs_can_be_described_meanwhile(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, HANG, 1, posted=True)
        device = daemon.describe(name)
        assert device["client"]["pid"] == os.getpid()
        assert device["statistics"] == {}
        os.kill(device["pid"], signal.SIGKILL)
        events.until("taken-over", name)


def test_what_the_device_raises_at_its_start_is_what_the_operator_is_told(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nautostart = false\nrestart = "no"\noptions.mood = "raises"')
    with pytest.raises(Refused, match="a tap needs CAP_NET_ADMIN"):
        daemon.call("Start", name=name)
    assert "CAP_NET_ADMIN" in daemon.describe(name)["error"]


def test_an_option_that_is_found_wrong_at_the_start_is_refused_and_not_tried_again(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nautostart = false\noptions.mood = "refuses"')
    with pytest.raises(Refused, match="option mood=refuses: not today"):
        daemon.call("Start", name=name)
    device = daemon.describe(name)
    assert (device["state"], device["restarts"]) == ("failed", 0)


def test_a_device_that_hangs_at_its_start_is_killed_and_holds_nobody_up(instance: Instance) -> None:
    instance.settings("start-timeout = 3\nrestart-limit = 0")
    instance.configure("sleepy", 'device = "probe"\noptions.mood = "sleeps"')
    path = instance.configure("lively")
    with instance:
        instance.said("sleepy: not ready after 3 s: killing it")
        assert eventually(lambda: instance.describe("sleepy")["state"] == "failed")
        connect(path).close()


def test_a_device_that_hangs_at_its_start_is_killed_however_late_it_was_forked(instance: Instance) -> None:
    instance.settings("start-timeout = 0.2\nrestart-limit = 0")
    instance.configure("sleepy", 'device = "probe"\nautostart = false\noptions.mood = "sleeps"')
    with instance, instance.control() as control:
        os.kill(instance.fork_server, signal.SIGSTOP)
        control.send("Start", name="sleepy")
        assert eventually(lambda: instance.describe("sleepy")["state"] == "starting")
        late = time.monotonic() + 0.4
        assert eventually(lambda: time.monotonic() > late)
        os.kill(instance.fork_server, signal.SIGCONT)
        with pytest.raises(Refused, match="sleepy has not started: its worker was killed by SIGKILL"):
            control.receive()


def test_a_worker_that_ignores_its_stop_is_killed(daemon: Instance) -> None:
    daemon.settings(IMPATIENT)
    name = daemon.add('device = "probe"\noptions.mood = "stubborn"')
    pid, since = daemon.pid(name), daemon.now()
    daemon.call("Stop", name=name)
    assert over(pid)
    daemon.said("it has not stopped within 0.3 s: killing it", since)
    assert daemon.describe(name)["state"] == "stopped"


def test_a_worker_that_is_stopped_by_a_signal_ends_all_the_same(daemon: Instance) -> None:
    daemon.settings(IMPATIENT)
    name = daemon.add()
    pid = daemon.pid(name)
    os.kill(pid, signal.SIGSTOP)
    daemon.call("Stop", name=name)
    assert over(pid)


def test_a_stop_need_not_wait_for_a_start_that_hangs(daemon: Instance) -> None:
    daemon.settings(IMPATIENT)
    name = daemon.add('device = "probe"\nautostart = false\noptions.mood = "sleeps"')
    with daemon.control() as starter:
        starter.send("Start", name=name)
        assert eventually(lambda: daemon.describe(name)["state"] == "starting")
        daemon.call("Stop", name=name)
        with pytest.raises(Refused, match="it was stopped"):
            starter.receive()
        assert daemon.describe(name)["state"] == "stopped"


def test_many_operators_at_once_leave_one_worker(daemon: Instance) -> None:
    name = daemon.add()

    def operate(method: str) -> None:
        for _ in range(5):
            with contextlib.suppress(Refused):  # a start that somebody else's stop has met
                daemon.call(method, name=name)

    threads = [threading.Thread(target=operate, args=[method]) for method in ("Start", "Stop", "Restart", "Start")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    daemon.call("Start", name=name)
    # One that has ended is there until the fork server has its status.
    assert eventually(lambda: [pid for pid in worker_pids(daemon) if name == process_name(pid)] == [daemon.pid(name)])
    connect(daemon.socket(name)).close()


def worker_pids(daemon: Instance) -> list[int]:
    server = daemon.fork_server
    return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]


def process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("bw:")
    except FileNotFoundError:  # it is no more
        return ""


def test_a_client_that_comes_and_goes_without_end_does_not_fill_the_log(daemon: Instance) -> None:
    name = daemon.add()
    since = daemon.now()
    with daemon.monitor(name) as events:
        for _ in range(20):
            connect(daemon.socket(name)).close()
            events.until("left")
    said = [line for line in daemon.log.splitlines()[since:] if f"{name}: client connected" in line]
    texts = [note["text"] for note in daemon.describe(name)["recent"]]
    assert len(said) == len([text for text in texts if text.startswith("client connected")]) == BURST
    assert texts[0] == "accepts clients", "what happened before can still be seen"


@contextlib.contextmanager
def room_for(pid: int, count: int) -> Iterator[None]:
    """Let a process open ``count`` more descriptors, and no other."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    limit = list(itertools.islice((fd for fd in itertools.count() if fd not in used), count + 1))[-1]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("who", ["manager", "fork server"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_lack_of_descriptors_hurts_no_other_device(daemon: Instance, who: str, count: int) -> None:
    steady = daemon.pid("steady")
    daemon.configure("late")
    with daemon.control() as control:
        for _ in range(3):  # so that this one is connected, and those before are closed
            control.call("List")
        with room_for(daemon.process.pid if who == "manager" else daemon.fork_server, count):
            failed = control.call("Reload")["outcome"]["failed"]
        control.call("Reload")  # even its file may have been out of reach
        control.call("Start", name="late")
    assert "too many open files" in failed["late"].lower()
    assert daemon.pid("steady") == steady
