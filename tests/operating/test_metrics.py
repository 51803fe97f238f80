"""OpenMetrics over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import socket
import stat
import time
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from bellwired.errors import CommandError
from bellwired.manager import metrics, scrapes
from bellwired.manager.manager import Manager
from bellwired.places import Places
from bellwired.release import release
from operating.instance import PATIENCE, PLAIN, QUICK, Instance, connect, eventually, read, write

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def ask(address: Path | tuple[str, int], request: bytes = GET) -> tuple[str, str]:
    """The head and the body of the answer."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(address) if isinstance(address, Path) else address)
        sock.sendall(request)
        answer = b""
        while data := sock.recv(1 << 16):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def scrape(address: Path | tuple[str, int]) -> dict[str, Metric]:
    head, body = ask(address)
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text")
    return {family.name: family for family in text_string_to_metric_families(body)}


def values(family: Metric) -> dict[str, float]:
    return {sample.labels["device"]: sample.value for sample in family.samples}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def by_label(family: Metric, label: str, **labels: str) -> dict[str, float]:
    """The values by one label, of the samples that have ``labels``."""
    return {sample.labels[label]: sample.value for sample in family.samples if labels.items() <= sample.labels.items()}


def test_they_tell_of_every_device_on_a_unix_socket(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    one = instance.configure("one")
    instance.configure("two", 'device = "bell"')
    instance.configure("three", 'device = "bell"\nautostart = false')
    instance.configure("four", "device = 4")
    with instance:
        with connect(one) as client:
            write(client, PLAIN, 1)
            families = scrape(path)
        assert values(families["bellwire_up"]) == {"one": 1, "two": 1, "three": 0, "four": 0}
        assert values(families["bellwire_connected"]) == {"one": 1, "two": 0}
        assert values(families["bellwire_writes"])["one"] >= 1
        assert values(families["bellwire_restarts"])["three"] == 0
        assert families["bellwire_dma_maps"].type == "gauge"
        assert families["bellwire_connected"].documentation == "Whether it has a client"
        assert instance.stop() == 0
    assert not path.exists()


def test_hand_overs_are_counted_with_the_last_pause(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'{QUICK}metrics = "unix:{path}"')
    one = instance.configure("one")
    with instance, connect(one) as client, instance.monitor("one") as events:
        assert values(scrape(path)["bellwire_hand_overs"]) == {"one": 0}
        for turn in (1, 2):
            begun = time.monotonic()
            os.kill(instance.pid("one"), signal.SIGKILL)
            assert read(client, PLAIN) == 0
            took = time.monotonic() - begun
            events.until("taken-over", "one")
            # An answer is good for a moment.
            assert eventually(lambda turn=turn: values(scrape(path)["bellwire_hand_overs"]) == {"one": turn})
            told = scrape(path)
            pause = values(told["bellwire_hand_over_pause_seconds"])["one"]
            assert 0 < pause <= took + 1
            about = instance.describe("one")["hand_overs"]
            assert (about["count"], about["reason"]) == (turn, "its worker was killed by SIGKILL")
            assert about["pause_ms"] / 1e3 == pytest.approx(
                values(told["bellwire_hand_over_pause_seconds"])["one"], abs=1e-3
            )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """A scrape of a daemon with a plugin, a bundled device, and a file that cannot be used."""
    instance = Instance(tmp_path_factory.mktemp("told"))
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    instance.configure("one")
    instance.configure("two", 'device = "bell"')
    with instance:
        instance.configure("bad", "device = 4")
        instance.reload()
        return scrape(path)


@pytest.mark.daemon
def test_rings_are_one_metric_with_the_mechanism_as_a_label(told: dict[str, Metric]) -> None:
    rings = by_label(told["bellwire_rings"], "mechanism", device="two")
    assert rings.keys() >= {"ioeventfd", "ioregionfd", "message"}
    assert set(rings.values()) == {0}
    assert told["bellwire_rings"].type == "counter"


@pytest.mark.daemon
def test_a_device_has_its_kind_its_version_and_its_plugins_file(told: dict[str, Metric]) -> None:
    labels = {sample.labels["device"]: sample.labels for sample in told["bellwire_device"].samples}
    assert labels["one"]["kind"] == "probe"
    assert labels["one"]["plugin"].endswith("/plugins/probe.py")
    assert (labels["two"]["kind"], labels["two"]["plugin"], labels["two"]["version"]) == ("bell", "", release())


@pytest.mark.daemon
def test_the_state_of_a_device_is_a_state_set(told: dict[str, Metric]) -> None:
    states = told["bellwire_device_state"]
    assert by_label(states, "bellwire_device_state", device="bad")["failed"] == 1
    assert by_label(states, "bellwire_device_state", device="one") == {
        "running": 1, "disabled": 0, "failed": 0, "starting": 0, "stopped": 0, "stopping": 0, "waiting": 0,
    }  # fmt: skip


@pytest.mark.daemon
def test_a_reload_is_told_with_its_result_and_its_time(told: dict[str, Metric]) -> None:
    assert by_label(told["bellwire_reloads"], "result") == {"success": 0, "failure": 1}
    assert told["bellwire_config_last_reload_successful"].samples[0].value == 0
    last, good = (
        told[f"bellwire_config_last_reload_{name}timestamp_seconds"].samples[0].value for name in ("", "success_")
    )
    assert 0 < good < last <= time.time()


@pytest.mark.daemon
def test_the_build_and_the_processes_are_told(told: dict[str, Metric]) -> None:
    assert told["bellwire_build"].samples[0].labels == {"version": release(), "python": platform.python_version()}
    memory = told["bellwire_process_resident_memory_bytes"]
    assert by_label(memory, "process", device="").keys() == {"manager", "fork-server"}
    assert by_label(memory, "device", process="worker")["one"] > 1 << 20
    assert sum(sample.value for sample in told["bellwire_process_cpu_seconds"].samples) > 0
    assert told["bellwire_process_cpu_seconds"].type == "counter"


@pytest.mark.parametrize("target", ["/metrics", "/metrics?name=x", "/?"])
def test_a_head_request_and_a_query_string_are_answered(instance: Instance, target: str) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    with instance:
        head, body = ask(path, f"HEAD {target} HTTP/1.1\r\n\r\n".encode())
        assert head.startswith("HTTP/1.1 200 OK")
        assert body == ""
        assert ask(path, f"GET {target} HTTP/1.1\r\n\r\n".encode())[1].endswith("# EOF\n")
        assert ask(path, b"POST /metrics HTTP/1.1\r\n\r\n")[0].startswith("HTTP/1.1 405")


def test_the_mode_of_the_socket_is_a_setting(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"\nmetrics-mode = "0640"')
    with instance:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_silent_connections_of_one_peer_hold_up_no_scrape_of_another(instance: Instance) -> None:
    address = ("127.0.0.1", free_port())
    instance.settings(f'metrics = "{address[0]}:{address[1]}"')
    with instance, contextlib.ExitStack() as stack:
        used = len(os.listdir(f"/proc/{instance.process.pid}/fd"))
        for _ in range(200):
            stack.enter_context(socket.create_connection(address, source_address=("127.0.0.2", 0)))
        begin = time.monotonic()
        assert "bellwire_build" in scrape(address)
        assert time.monotonic() - begin < scrapes.PATIENCE
        assert len(os.listdir(f"/proc/{instance.process.pid}/fd")) <= used + scrapes.EACH + 2
        assert len([line for line in instance.log.splitlines() if "was refused: 127.0.0.2" in line]) <= 5
        assert "Traceback" not in instance.log


def test_a_scraper_that_sends_a_byte_at_a_time_or_reads_nothing_is_dropped(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    with instance, socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(PATIENCE)
        slow.connect(str(path))
        slow.sendall(GET[:-1])
        assert slow.recv(1) == b""


def test_scrapes_at_the_same_time_share_one_answer(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    with instance, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(scrapes.EACH)]
        for sock in waiting:
            sock.settimeout(PATIENCE)
            sock.connect(str(path))
        for sock in waiting:
            sock.sendall(GET)
        bodies = set()
        for sock in waiting:
            with sock.makefile("rb") as answer:
                bodies.add(answer.read().partition(b"\r\n\r\n")[2])
        assert len(bodies) == 1


def test_they_are_served_on_tcp_and_to_nobody_who_asks_for_something_else(instance: Instance) -> None:
    address = ("127.0.0.1", free_port())
    instance.settings(f'metrics = "{address[0]}:{address[1]}"')
    instance.configure("one")
    with instance:
        assert values(scrape(address)["bellwire_up"]) == {"one": 1}
        assert ask(address, b"GET /etc/passwd HTTP/1.1\r\n\r\n")[0].startswith("HTTP/1.1 404")
        with contextlib.suppress(ConnectionError):
            assert ask(address, b"x" * 100_000 + b"\r\n\r\n") == ("", "")
        assert values(scrape(address)["bellwire_up"]) == {"one": 1}


def test_a_scraper_that_never_asks_holds_up_no_stop(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    with instance, socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(path))
        assert instance.stop() == 0


@pytest.mark.parametrize("where", ["9464", ":9464", "127.0.0.1:http", "127.0.0.1:99999", "nowhere", "unix:/no/such/x"])
def test_an_address_that_is_none_is_refused_at_the_start(tmp_path: Path, where: str) -> None:
    (tmp_path / "bellwired.toml").write_text(f'metrics = "{where}"')

    async def start() -> None:
        async with metrics.serving(Manager(Places.of(tmp_path, tmp_path))):
            pass

    with pytest.raises(CommandError, match=r"^metrics = "):
        asyncio.run(start())
