"""libvfio-user's sample server migrates with our client. LIBVFIO_USER names a checkout in which it has been built.

Its own sample client drives that server's device alone, so it cannot be run against a device of ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfio_user import Client, DeviceState, MigrationFlags

pytestmark = pytest.mark.slow

CHECKOUT = "LIBVFIO_USER"
PATIENCE = 30.0
Start = Callable[[str], Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the sample server at a socket of this name; a client of it."""
    named = os.environ.get(CHECKOUT)
    if not named:
        pytest.skip(f"{CHECKOUT} names no checkout of libvfio-user")
    programs = [path for path in Path(named).glob("**/samples/server") if os.access(path, os.X_OK)]
    if not programs:
        pytest.skip(f"the checkout that {CHECKOUT} names has no samples/server: build it (meson, ninja)")
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Client:
            path = tmp_path / name
            process = stack.enter_context(subprocess.Popen([os.fspath(programs[0]), os.fspath(path)]))
            stack.callback(process.kill)
            deadline = time.monotonic() + PATIENCE
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                select.select([], [], [], 0.01)
            return stack.enter_context(Client.connect(path))

        yield start


@pytest.mark.parametrize("pre_copy", [False, True])
def test_its_server_moves_with_our_client(start: Start, pre_copy: bool) -> None:
    source, target = start("source"), start("target")
    if not source.migration.flags():
        pytest.skip(f"the checkout that {CHECKOUT} names has no DEVICE_FEATURE: it is older than migration v2")
    assert MigrationFlags.STOP_COPY in source.migration.flags()
    content = os.urandom(4096)
    source.write(1, 4096, content)
    parts: list[bytes] = []
    for state in (DeviceState.PRE_COPY, DeviceState.STOP_COPY)[not pre_copy :]:
        source.migration.set_state(state)
        parts += iter(lambda: source.migration.read(1 << 16), b"")
    assert source.migration.state is DeviceState.STOP_COPY
    target.migration.set_state(DeviceState.RESUMING)
    for part in parts:
        target.migration.write(part)
    target.migration.set_state(DeviceState.RUNNING)
    assert target.read(1, 4096, 4096) == content
