"""The view in a browser: who may see it, and that a browser shows it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from bellwired.commands.view.web import COOKIE, HOST
from daemon.commands import children
from operating.instance import Instance, eventually, over

pytestmark = pytest.mark.daemon
PATIENCE = 60.0
CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


class Site(NamedTuple):
    port: int
    token: str

    @property
    def host(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        return f"http://{self.host}/?token={self.token}"

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        connection.putrequest("GET", path, skip_host=True)
        for name, value in ({"Host": self.host} | headers).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer


@contextlib.contextmanager
def served(daemon: Instance) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """``bellwire view --web``, which has printed its address."""
    command = [sys.executable, "-m", "bellwired", "view", *daemon.places, "--web", "--port", "0", "bellfry"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            found = re.fullmatch(rf"open http://{HOST}:(\d+)/\?token=(\S+)\n", serving.stdout.readline())
            assert found is not None
            yield Site(int(found[1]), found[2]), serving
        finally:
            serving.terminate()
        assert serving.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def belfry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with Instance(tmp_path_factory.mktemp("seen")) as daemon:
        daemon.configure("bellfry", 'device = "bell"')
        daemon.reload()
        yield daemon


@pytest.fixture(scope="module")
def site(belfry: Instance) -> Iterator[Site]:
    with served(belfry) as (site, _):
        yield site


def test_without_the_token_there_is_nothing_to_see(site: Site) -> None:
    assert [site.get(path).status for path in ("/", "/ws", "/static/js/textual.js", "/?token=guess")] == [403] * 4


def test_the_token_becomes_a_cookie_that_other_sites_do_not_send(site: Site) -> None:
    answer = site.get(f"/?token={site.token}")
    assert (answer.status, answer.headers["Location"]) == (302, "/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["Set-Cookie"].split("; "))
    assert site.get("/", Cookie=f"{COOKIE}={site.token}").status == 200


@pytest.mark.parametrize("headers", [{"Host": "attacker.example"}, {"Origin": "http://attacker.example"}])
def test_a_page_of_another_site_is_refused_even_with_the_cookie(site: Site, headers: dict[str, str]) -> None:
    assert site.get("/ws", **({"Cookie": f"{COOKIE}={site.token}"} | headers)).status == 403


def test_the_page_may_load_nothing_from_elsewhere(site: Site) -> None:
    policy = site.get("/", Cookie=f"{COOKIE}={site.token}").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy


def test_it_listens_on_the_loopback_address_alone(site: Site) -> None:
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = re.findall(rf"^ *\d+: ([0-9A-F]+):{site.port:04X} [0-9A-F]+:0000 0A ", table, re.MULTILINE)
    assert listening == ["0100007F"]


def test_what_runs_for_a_page_ends_with_the_server(belfry: Instance) -> None:
    async def open_page(site: Site, serving: subprocess.Popen[str]) -> int:
        headers = {"Cookie": f"{COOKIE}={site.token}"}
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"http://{site.host}/ws") as page,
        ):
            await page.receive()
            (running,) = children(serving.pid)
            serving.kill()
            return running

    with contextlib.suppress(AssertionError), served(belfry) as (site, serving):  # killed, so its status is not 0
        running = asyncio.run(open_page(site, serving))
    assert eventually(lambda: over(running))


def test_a_browser_shows_the_device(site: Site, tmp_path: Path) -> None:
    asyncio.run(_visit(site, tmp_path))


async def _visit(site: Site, profile: Path) -> None:
    with subprocess.Popen([*CHROMIUM, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE) as browser:
        assert browser.stderr is not None
        try:
            said = iter(browser.stderr.readline, b"")
            port = next(line.split(b":")[-1].split(b"/")[0].decode() for line in said if b"DevTools listening" in line)
            async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
                async with session.get(f"http://{HOST}:{port}/json") as answer:
                    page = next(each for each in await answer.json() if each["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as tools:
                    await _see(site, tools)
        finally:
            browser.kill()


async def _see(site: Site, tools: aiohttp.ClientWebSocketResponse) -> None:
    """Wait for the websocket's frames, until one has the device's name; soon the page shows the terminal."""
    await _ask(tools, "Network.enable")
    await _ask(tools, "Page.navigate", url=site.address)
    async for message in tools:
        heard = message.json()
        if heard.get("method") == "Network.webSocketFrameReceived":
            data = heard["params"]["response"]["payloadData"]
            if "bellfry" in data or "bellfry" in _decoded(data):
                break
    shown = "document.body.classList.contains('-first-byte')"
    while not (await _ask(tools, "Runtime.evaluate", expression=shown))["result"]["value"]:
        pass  # the browser tells of a frame before the page has it


async def _ask(tools: aiohttp.ClientWebSocketResponse, method: str, **arguments: Any) -> Any:
    await tools.send_json({"id": 1, "method": method, "params": arguments})
    async for message in tools:
        heard = message.json()
        if heard.get("id") == 1:
            return heard["result"]
    raise EOFError("the browser has hung up")


def _decoded(data: str) -> str:
    """A frame of bytes, which the browser tells of in base64."""
    try:
        return base64.b64decode(data, validate=True).decode(errors="replace")
    except binascii.Error:
        return ""
