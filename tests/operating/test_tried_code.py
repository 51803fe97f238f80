"""Newer code is tried: what happens if a worker ends meanwhile, or before."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operating.conftest import Run
from operating.edited import edit, plugin
from operating.instance import EDITION, PLAIN, Instance, connect, read, write
from operating.varlink import Refused
from vfio_user import RegionIndex

pytestmark = pytest.mark.daemon

FATAL = """
import os
from bellwire import Bar, PciDevice

class Fatal(PciDevice, vendor=0x1234, device=0x98, class_code=0xFF0000, name="fatal"):
    mmio = Bar(0, size=64)
    plain = mmio.reg(0x00)
    told = mmio.reg(0x0C)

    def recovered(self, torn: bool) -> None:
        BODY

    def failed(self) -> None:
        self.told = 1
"""
NEEDY = """
from pathlib import Path

from bellwire import Bar, Option, OptionError, PciDevice

class Needy(PciDevice, vendor=0x1234, device=0x98, class_code=0xFF0000, name="needy"):
    needed = Option(Path())
    mmio = Bar(0, size=64)
    plain = mmio.reg(0x00)

    def check_options(self) -> None:
        if not self.needed.exists():
            raise OptionError(f"{self.needed} is not there")
"""


@pytest.mark.parametrize("body", ["os._exit(0)", "signal.raise_signal(9)", "os.kill(os.getpid(), 19)", "1 / 0"])
def test_new_code_whose_process_ends_while_it_is_tried_never_takes_over(daemon: Instance, body: str) -> None:
    name = daemon.add('device = "probe"\nhang-timeout = 0.4\n')
    with connect(daemon.socket(name)) as client, ThreadPoolExecutor(1) as others:
        write(client, PLAIN, 42)
        old = "reset=1)\n    fall = mmio.reg(0x10)\n"
        new = f"{old.replace('1)', '2)')}\n    def restored(self) -> None:\n        {body}\n"
        mend = plugin(daemon, old, new)
        try:
            reload = others.submit(daemon.reload)
            while not reload.done():
                assert (read(client, PLAIN), read(client, EDITION)) == (42, 1)
            assert name in reload.result()["failed"]
            assert (read(client, PLAIN), read(client, EDITION)) == (42, 1)
            assert "file" in (troubles := daemon.describe(name)["troubles"]) or "tried them" in troubles["code"]
        finally:
            mend()
        daemon.reload()
        assert (read(client, PLAIN), read(client, EDITION)) == (42, 1)
        assert daemon.describe(name)["troubles"] == {}


def test_a_worker_that_dies_before_it_tries_newer_code_is_followed_by_that_code_and_status_says_so(
    daemon: Instance,
) -> None:
    name = daemon.add('device = "probe"\nhang-timeout = 0.4\n')
    with connect(daemon.socket(name)) as client, ThreadPoolExecutor(1) as others:
        write(client, PLAIN, 42)
        mend = plugin(daemon, 'access="constant", reset=1)', 'access="constant", reset=2)')
        try:
            os.kill(daemon.pid(name), signal.SIGSTOP)
            reload = others.submit(daemon.reload)
            assert (read(client, PLAIN), read(client, EDITION)) == (42, 2)
            reload.result()
            assert daemon.describe(name)["troubles"] == {}
        finally:
            mend()
        daemon.reload()


def test_a_device_that_could_not_be_made_again_is_not_moved(daemon: Instance, tmp_path: Path) -> None:
    (needed := tmp_path / "needed").touch()
    file = daemon.plugins / "needy.py"
    edit(file, NEEDY)
    name = daemon.add(f'device = "needy"\noptions.needed = "{needed}"\n')
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        needed.unlink()
        with pytest.raises(Refused, match="is not there"):
            daemon.call("Move", name=name)
        assert (read(client, PLAIN), daemon.pid(name)) == (42, pid)
        assert daemon.describe(name)["troubles"] == {}
    daemon.remove(name)
    daemon.reload()
    file.unlink()


@pytest.mark.parametrize("body", ["os._exit(3)", "while True: pass"])
def test_a_device_whose_recovered_ends_or_hangs_its_process_is_reset_and_told(daemon: Instance, body: str) -> None:
    file = daemon.plugins / "fatal.py"
    edit(file, FATAL.replace("BODY", body))
    name = daemon.add('device = "fatal"\nhang-timeout = 0.4\n')
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        since = daemon.now()
        for _ in range(2):
            os.kill(daemon.pid(name), signal.SIGKILL)
            assert (read(client, PLAIN), read(client, EDITION)) == (0, 1)
            write(client, EDITION, 0)
        assert daemon.describe(name)["restarts"] == 4, "each first successor died, and each second one was reset"
        daemon.said("a process that went on with it has ended", since)
        assert daemon.describe(name)["troubles"] == {}
    daemon.remove(name)
    daemon.reload()
    file.unlink()


def test_newer_code_has_the_options_of_its_file_and_status_says_so(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        assert run("set", name, "pace=7") == (0, "", "")
        assert daemon.describe(name)["changed"] == {"pace": "7"}
        mend = plugin(daemon, 'access="constant", reset=1)', 'access="constant", reset=2)')
        try:
            assert name in daemon.reload()["restarted"]
            assert (read(client, PLAIN), read(client, EDITION)) == (7, 2)
            assert daemon.describe(name)["changed"] == {}
        finally:
            mend()
        daemon.reload()


def test_a_serial_port_whose_log_was_renamed_begins_another_one(daemon: Instance, tmp_path: Path) -> None:
    log = tmp_path / "line.log"
    name = daemon.add(f'device = "serial"\noptions.backend = "file:{log}"')
    with connect(daemon.socket(name)) as client:
        log.rename(tmp_path / "line.log.1")
        os.kill(daemon.pid(name), signal.SIGKILL)
        assert client.read(RegionIndex.CONFIG, 0, 2)
        assert log.exists()
