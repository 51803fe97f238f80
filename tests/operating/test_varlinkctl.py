"""systemd's own varlinkctl (255 or newer, here Debian's) understands the control API."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path

import pytest

from bellwired.guest.archive import ArchiveError
from operating.instance import PATIENCE, Instance
from provision import provision

pytestmark = pytest.mark.guest
INTERFACE = "org.bellwire.Manager"


@pytest.fixture(scope="module")
def varlinkctl() -> list[str]:
    try:
        return provision().command("usr/bin/varlinkctl")
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no varlinkctl could be provided: {error}")


def ask(varlinkctl: list[str], *words: str | Path) -> str:
    done = subprocess.run(
        [*varlinkctl, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_introspects_the_interface(daemon: Instance, varlinkctl: list[str]) -> None:
    said = ask(varlinkctl, "introspect", daemon.runtime / "control", INTERFACE)
    assert f"interface {INTERFACE}" in said
    for method in ("List", "Describe", "Start", "Stop", "Restart", "Reset", "Reload", "Registers", "Monitor"):
        assert f"method {method}(" in said


def test_it_is_told_who_we_are(daemon: Instance, varlinkctl: list[str]) -> None:
    assert "bellwired" in ask(varlinkctl, "info", daemon.runtime / "control")


def test_it_calls_a_method(daemon: Instance, varlinkctl: list[str]) -> None:
    wanted = f"{INTERFACE}.Registers", '{"name":"steady"}'
    said = ask(varlinkctl, "call", "--json=short", daemon.runtime / "control", *wanted)
    registers = {each["name"]: each["value"] for each in json.loads(said)["registers"]}
    assert registers["ident"] == 0xBE11_0001


def test_it_follows_the_stream_of_events(daemon: Instance, varlinkctl: list[str]) -> None:
    control = str(daemon.runtime / "control")
    command = [*varlinkctl, "call", "--more", "--json=short", control, f"{INTERFACE}.Monitor", "{}"]
    deadline = time.monotonic() + PATIENCE
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            heard = b""
            while b'"reloaded"' not in heard and time.monotonic() < deadline:
                ask(varlinkctl, "call", control, f"{INTERFACE}.Reload", "{}")  # until it listens
                if select.select([process.stdout], [], [], 0.2)[0]:
                    heard += os.read(process.stdout.fileno(), 65536)
        finally:
            process.kill()
    assert b'"reloaded"' in heard
