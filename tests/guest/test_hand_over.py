"""Linux goes on while the workers of its devices are killed: it sees no error, and reads what it has written."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from figures import FIO
from linux import Guest
from operating.instance import QUICK, Instance

pytestmark = [pytest.mark.guest, pytest.mark.daemon]

SCRIPT = """
fio --name=x --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=16 --size=8M \
    --io_size=24M --verify=crc32c --do_verify=1 --verify_fatal=1 >/out 2>&1 || { cat /out; exit 1; }
dmesg | grep -iE 'nvme.*(error|timeout|reset|abort)|I/O error|Oops|BUG|Call Trace' && exit 2
exit 0
"""
FIRST = 1.0  # seconds from a client's VERSION to the first kill: its driver starts the disk


def kill_on(daemon: Instance, name: str, over: threading.Event, pauses: list[float]) -> None:
    """End the worker again and again, as soon as the one before has been served for a moment."""
    with daemon.monitor(name) as events:
        events.until("introduced", name)
        over.wait(FIRST)
        while not over.wait(0.2):
            os.kill(daemon.pid(name), signal.SIGKILL)
            text = events.until("taken-over", name)["fields"]["text"]
            pauses.append(float(re.findall(r"([\d.]+) ms", text)[0]))


def test_a_disk_under_fio_survives_the_death_of_its_worker(
    tools: Toolbox, tmp_path: Path, tell: Callable[..., None]
) -> None:
    settings = QUICK + "restart-limit = 1000\n"
    guest = Guest(tools, tmp_path)
    with Instance(tmp_path / "daemon", settings) as daemon:
        name = daemon.add(f'device = "nvme"\n[options]\nimage = "{tmp_path}/image"\nsize = "8M"\n')
        tell(lambda: {**guest.report(), "daemon": daemon.log})
        over = threading.Event()
        pauses: list[float] = []
        killer = threading.Thread(target=kill_on, args=(daemon, name, over, pauses))
        killer.start()
        try:
            outcome = guest.run(SCRIPT, [Plugged(daemon.socket(name))], programs=[FIO], modules=["nvme"], timeout=120)
        finally:
            over.set()
            killer.join()
    print(sorted(pauses), time.monotonic())
    assert (outcome.status, outcome.output) == (0, "")
    assert len(pauses) >= 5
