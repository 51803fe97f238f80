"""``--dialect`` of ``bellwire run`` and ``bellwire vmm``."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from bellwire_vmm.vmm import Machine
from bellwired.commands.vmm import plug
from bellwired.errors import CommandError
from daemon.commands import PATIENCE, bellwire, ended, line, started
from vfio_user import DRAFT_2021, Client, IoEventFd, IoRegionFd

pytestmark = pytest.mark.daemon


@pytest.mark.kvm
def test_it_speaks_the_dialect_that_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bell.sock"
    with started("run", "bell", "--socket-path", str(path), "--dialect", "draft-2021") as process:
        line(process)
        with Client.connect(path, dialect=DRAFT_2021, timeout=PATIENCE) as client:
            client.reset()
            subs = [sub for index in range(6) for sub in client.io_fds(index)]
            assert {type(sub) for sub in subs} == {IoEventFd, IoRegionFd}
            for fd in {sub.fd for sub in subs}:
                os.close(fd)
        with Machine(32 << 20) as machine, contextlib.closing(plug(machine, path, DRAFT_2021)) as device:
            assert {route.mechanism.partition(" ")[0] for route in device.routes()} >= {"ioeventfd", "ioregionfd"}
            device.reset()
        with Machine(32 << 20) as machine, pytest.raises(CommandError, match="DEVICE_RESET failed") as refused:
            plug(machine, path)
        assert "--dialect" in refused.value.hint
        assert ended(process, signal.SIGTERM) == 0
    done = bellwire("run", "bell", "--dialect", "draft-2021", "--io-fd-entry", "48")
    assert (done.returncode, "--io-fd-entry is for the ratified dialect" in done.stderr) == (1, True)
