"""Linux goes on while the workers of its disks are killed under load: it sees no error, and reads what it has written.

One of the disks is in the hands of a qemu-storage-daemon, which lives on.

``make test-chaos`` kills them 200 times; the tests at large a few times. Both print the pauses.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vhost_backends
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from figures import FIO
from linux import Guest
from operating.instance import QUICK, Instance

pytestmark = [pytest.mark.guest, pytest.mark.daemon]

DISKS = {"nvme": "/dev/nvme0n1", "virtio-blk": "/dev/vda", "vhost": "/dev/vdb"}
SETTINGS = QUICK + "restart-limit = 1000\n"
JOB = "--ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=8 --size=4M --verify=crc32c --verify_fatal=1"
SCRIPT = """
dmesg -c >/dev/null
for path in {paths}; do
    fio --name=x --filename=$path {job} --io_size={mib}M >/out-$(basename $path) 2>&1 &
    jobs="$jobs $!"
done
for job in $jobs; do wait $job || {{ cat /out-*; exit 1; }}; done
dmesg | grep -E '(nvme|virtio|vda).*([Ee]rror|timeout|[Rr]eset|[Aa]bort|needs)|I/O error|Oops|BUG:|Call Trace' && exit 2
exit 0
"""
BEGIN = 6.0  # seconds from a client's VERSION until its driver uses the disk
BETWEEN = 0.05, 0.5  # seconds


def kill(daemon: Instance, name: str, over: threading.Event, most: int) -> list[float]:
    """End the worker again and again, at random moments. Returns the pauses in milliseconds."""
    pauses: list[float] = []
    moments = random.Random(name)
    with daemon.monitor(name) as events:
        events.until("introduced", name)
        over.wait(BEGIN)
        while len(pauses) < most and not over.wait(moments.uniform(*BETWEEN)):
            os.kill(daemon.pid(name), signal.SIGKILL)
            events.until("taken-over", name)
            pauses.append(daemon.describe(name)["hand_overs"]["pause_ms"])
    return pauses


@pytest.mark.parametrize(("mib", "kills"), [(6, 20), pytest.param(150, 100, marks=pytest.mark.long)])
def test_disks_under_fio_survive_the_death_of_their_workers(
    tools: Toolbox, tmp_path: Path, tell: Callable[..., None], mib: int, kills: int
) -> None:
    guest, over = Guest(tools, tmp_path), threading.Event()
    script = SCRIPT.format(paths=" ".join(DISKS.values()), job=JOB, mib=mib)
    socket, image = tmp_path / "back-end", tmp_path / "vhost"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    with (
        vhost_backends.running(vhost_backends.storage_daemon(tools, image, socket), socket),
        Instance(tmp_path / "daemon", SETTINGS) as daemon,
        ThreadPoolExecutor() as host,
    ):
        tell(lambda: {**guest.report(), "daemon": daemon.log})
        options = {disk: f'image = "{tmp_path}/{disk}"\nsize = "4M"\n' for disk in DISKS}
        options["vhost"] = f'type = "blk"\nbackend = "unix:{socket}"\n'
        names = [daemon.add(f'device = "{disk}"\n[options]\n{options[disk]}') for disk in DISKS]
        killed = [host.submit(kill, daemon, name, over, kills) for name in names]
        try:
            devices = [Plugged(daemon.socket(name)) for name in names]
            modules = ["nvme", "virtio_blk"]
            outcome = guest.run(script, devices, programs=[FIO], modules=modules, timeout=120 + 4 * mib)
        finally:
            over.set()
        pauses = sorted(pause for each in killed for pause in each.result())
    print(f"{len(pauses)} deaths; pauses in ms: median {statistics.median(pauses):.0f}, longest {pauses[-1]:.0f}")
    assert (outcome.status, re.sub(r"fio.*", "", outcome.output, flags=re.DOTALL)) == (0, "")
    assert len(pauses) >= min(kills, 10)
