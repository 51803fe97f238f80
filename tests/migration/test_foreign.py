"""libvfio-user's sample server migrates with our client. LIBVFIO_USER names a checkout in which it has been built.

Its own sample client cannot migrate a device of ours. It starts its sample server as the target, and gives that one the
state. The client of a checkout that is older than migration v2 ends before: it wants ten regions, of which the last is
the migration region of that time. The protocol has nine.
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

from bellwire.bundled.edu import Edu
from bellwire.testing import serve
from vfio_user import Client, DeviceState, MigrationFlags

pytestmark = pytest.mark.slow

CHECKOUT = "LIBVFIO_USER"
PATIENCE = 30.0
Start = Callable[[str], Client]


def sample(name: str) -> str:
    """The path of one of its samples. Skips the test without it."""
    named = os.environ.get(CHECKOUT)
    if not named:
        pytest.skip(f"{CHECKOUT} names no checkout of libvfio-user")
    programs = [path for path in Path(named).glob(f"**/samples/{name}") if os.access(path, os.X_OK)]
    if not programs:
        pytest.skip(f"the checkout that {CHECKOUT} names has no samples/{name}: build it (meson, ninja)")
    return os.fspath(programs[0])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the sample server at a socket of this name; a client of it."""
    program = sample("server")
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Client:
            path = tmp_path / name
            process = stack.enter_context(subprocess.Popen([program, os.fspath(path)]))
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


def test_its_client_of_migration_v1_comes_as_far_as_the_number_of_regions(start: Start) -> None:
    program = sample("client")
    if start("server").migration.flags():
        pytest.skip(f"the checkout that {CHECKOUT} names has a client of migration v2, which this test does not know")
    with serve(Edu) as serving:
        done = subprocess.run(
            [program, os.fspath(serving.path)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "client: failed to read from region -559038737 0-0x3: Invalid argument",  # as it wants it
        "client: bad number of device regions 9",
    ]
