"""OpenMetrics over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from bellwired.errors import CommandError
from bellwired.manager import metrics
from bellwired.manager.manager import Manager
from bellwired.places import Places
from operating.instance import PATIENCE, PLAIN, Instance, connect, write

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


def test_they_tell_of_every_device_on_a_unix_socket(instance: Instance) -> None:
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    one = instance.configure("one")
    instance.configure("two", 'device = "bell"')
    instance.configure("three", 'device = "bell"\nautostart = false')
    with instance:
        with connect(one) as client:
            write(client, PLAIN, 1)
            families = scrape(path)
        assert values(families["bellwire_up"]) == {"one": 1, "two": 1, "three": 0}
        assert values(families["bellwire_connected"]) == {"one": 1, "two": 0}
        assert values(families["bellwire_writes"])["one"] >= 1
        assert values(families["bellwire_memory_bytes"])["two"] > 1 << 20
        assert values(families["bellwire_restarts"]) == {"one": 0, "two": 0, "three": 0}
        assert families["bellwire_rings_ioeventfd"].type == "counter"
        assert families["bellwire_dma_maps"].type == "gauge"
        assert families["bellwire_writes"].documentation == "Writes since its worker was started"
        assert families["bellwire_connected"].documentation == "Whether it has a client"
        assert instance.stop() == 0
    assert not path.exists()


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
