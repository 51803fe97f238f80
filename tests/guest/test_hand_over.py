"""Linux goes on while the workers of its disks are killed, hang and get new code under load: it sees no error.

``make test-chaos`` does it to more devices, and restarts the daemon, too (test_chaos.py). All print the pauses.
"""

from __future__ import annotations

import contextlib
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
from hosted import PLUGINS
from linux import Guest
from operating.instance import QUICK, Instance
from operating.varlink import Varlink

pytestmark = [pytest.mark.guest, pytest.mark.daemon]

DISKS = {"disk": "/dev/nvme0n1", "block": "/dev/vda", "vhost": "/dev/vdb"}
SETTINGS = QUICK.replace("ping-timeout = 10", "ping-timeout = 1") + "restart-limit = 1000\n"
KINDS = ["kill", "edit", "kill", "stop"]
EDITING = threading.Lock()  # a reload takes up all that was edited
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


def disturb(daemon: Instance, events: Varlink, name: str, disk: str, over: threading.Event, most: int) -> list[float]:
    """Kill, edit and stop what serves the disk, at random moments. Returns the pauses in milliseconds."""
    pauses: list[float] = []
    moments = random.Random(name)
    events.until("introduced", name)
    over.wait(BEGIN)
    while len(pauses) < most and not over.wait(moments.uniform(*BETWEEN)):
        kind = KINDS[len(pauses) % len(KINDS)] if disk in PLUGINS else "kill"
        if kind == "edit":
            with EDITING:
                edit(daemon.plugins / f"{disk}.py", f"{PLUGINS[disk]}\n\nEDITION = {len(pauses)}\n")
                daemon.reload()
        else:
            os.kill(daemon.pid(name), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        if events.until_any("taken-over", "left")["kind"] == "left":
            break  # the guest has ended meanwhile
        pauses.append(daemon.describe(name)["hand_overs"]["pause_ms"])
    return pauses


def edit(file: Path, text: str) -> None:
    """Put another file in the place of one, as editors do."""
    fresh = file.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.rename(file)


@pytest.mark.parametrize(("mib", "times"), [(60, 20), pytest.param(150, 100, marks=pytest.mark.long)])
def test_disks_under_fio_survive_what_happens_to_their_workers(
    tools: Toolbox, tmp_path: Path, tell: Callable[..., None], mib: int, times: int
) -> None:
    guest, over = Guest(tools, tmp_path), threading.Event()
    script = SCRIPT.format(paths=" ".join(DISKS.values()), job=JOB, mib=mib)
    socket, image = tmp_path / "back-end", tmp_path / "vhost"
    for disk in DISKS:
        with (tmp_path / disk).open("wb") as file:
            file.truncate(4 << 20)
    with (
        vhost_backends.running(vhost_backends.storage_daemon(tools, image, socket), socket),
        Instance(tmp_path / "daemon", SETTINGS) as daemon,
        ThreadPoolExecutor() as host,
        contextlib.ExitStack() as streams,
    ):
        tell(lambda: {**guest.report(), "daemon": daemon.log})
        for disk in DISKS.keys() & PLUGINS.keys():
            edit(daemon.plugins / f"{disk}.py", PLUGINS[disk])
        options = {disk: f'image = "{tmp_path}/{disk}"\n' for disk in DISKS}
        options["vhost"] = f'type = "blk"\nbackend = "unix:{socket}"\n'
        names = [daemon.add(f'device = "{disk}"\n[options]\n{options[disk]}') for disk in DISKS]
        events = [streams.enter_context(daemon.monitor(name)) for name in names]  # from before the clients come
        work = zip(events, names, DISKS, strict=True)
        disturbed = [host.submit(disturb, daemon, *each, over, times) for each in work]
        try:
            devices = [Plugged(daemon.socket(name)) for name in names]
            modules = ["nvme", "virtio_blk"]
            outcome = guest.run(script, devices, programs=[FIO], modules=modules, timeout=120 + 4 * mib)
        finally:
            over.set()
        pauses = sorted(pause for each in disturbed for pause in each.result())
    print(f"{len(pauses)} hand-overs; pauses in ms: median {statistics.median(pauses):.0f}, longest {pauses[-1]:.0f}")
    assert (outcome.status, re.sub(r"fio.*", "", outcome.output, flags=re.DOTALL)) == (0, "")
    assert len(pauses) >= min(times, 10)
