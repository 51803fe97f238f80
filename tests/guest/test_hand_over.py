"""Linux goes on while the workers of its devices are killed: it sees no error, and reads what it has written."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from comings import TALK
from figures import FIO
from linux import Guest
from operating.instance import QUICK, Instance
from rendezvous import joined

pytestmark = [pytest.mark.guest, pytest.mark.daemon]

TIMES = 3
SCRIPT = f"""{TALK}
disk="fio --name=x --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --bs=4k --iodepth=16 --size=4M --verify=crc32c"
for turn in {" ".join(map(str, range(TIMES)))}; do
    $disk --rw=randwrite --do_verify=0 >/out 2>&1 || {{ cat /out; exit 1; }}
    say "at rest"
    $disk --rw=randread --verify_fatal=1 >/out 2>&1 || {{ cat /out; exit 2; }}
done
dmesg | grep -E 'nvme.*([Ee]rror|timeout|[Rr]eset|[Aa]bort)|I/O error|Oops|BUG:|Call Trace' && exit 3
exit 0
"""


def kill_at_rest(daemon: Instance, name: str, line: Path) -> None:
    """Each time that the guest says so, end the worker, and answer when another one has taken over."""
    with joined(line) as far, far.makefile("rb") as lines, daemon.monitor(name) as events:
        for _ in range(TIMES):
            assert lines.readline().strip() == b"at rest"
            os.kill(daemon.pid(name), signal.SIGKILL)
            events.until("taken-over", name)
            far.sendall(b"go on\n")


def test_a_disk_survives_the_death_of_its_worker(tools: Toolbox, tmp_path: Path, tell: Callable[..., None]) -> None:
    guest = Guest(tools, tmp_path)
    line = ("-serial", f"unix:{tmp_path}/line,server=on,wait=off")
    with Instance(tmp_path / "daemon", QUICK) as daemon, ThreadPoolExecutor(1) as host:
        tell(lambda: {**guest.report(), "daemon": daemon.log})
        name = daemon.add(f'device = "nvme"\n[options]\nimage = "{tmp_path}/image"\nsize = "4M"\n')
        killed = host.submit(kill_at_rest, daemon, name, tmp_path / "line")
        devices = [Plugged(daemon.socket(name))]
        outcome = guest.run(SCRIPT, devices, programs=[FIO], modules=["nvme"], arguments=line, timeout=120)
        killed.result()
    assert (outcome.status, outcome.output) == (0, "")
