"""A Linux that verifies what it has written to two disks, saved, restored and moved in the middle of that."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.initramfs import archive
from bellwired.guest.toolbox import Toolbox
from busy import FIO
from nested.boot import run
from nested.errors import LackError
from nested.kernel import image
from nested.test_linux import BEGIN, QUIET
from provision import provision

pytestmark = [pytest.mark.nested, pytest.mark.long]

HERE = Path(__file__).parent
PATIENCE = 2400.0
ROUNDS = 10
JOB = "--ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=8 --size=512k --io_size=1M --verify=crc32c"
USE = f"""
for module in /modules/*; do insmod $module; done
use() {{
    for round in $(seq {ROUNDS}); do
        /{FIO} --name=x --filename=$1 {JOB} --verify_fatal=1 >/log$2 2>&1 || {{ cat /log$2; echo "fio failed on $1"; }}
        echo "round $round of $1"
    done
    touch /done$2
}}
use /dev/nvme0n1 1 &
use /dev/vda 2 &
until [ -e /done1 ] && [ -e /done2 ]; do usleep 100000; done
echo "the kernel has said:"
dmesg | grep -iE "I/O error|timeout|timed out|abort|[^p]reset|Oops|BUG:|Call Trace|blocked for|stall" || echo nothing
echo "all done"
poweroff -f
"""


@pytest.fixture(scope="module")
def tools() -> Toolbox:
    try:
        return provision()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no bed could be made: {error}")


@pytest.fixture(scope="module")
def moved(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of it, on a kernel that tells which pages a process has written (6.7 and newer)."""
    folder = tmp_path_factory.mktemp("moved")
    try:
        bed = image(tools, "debian", lambda _: None)
    except LackError as error:
        pytest.skip(f"no kernel could be built: {error} {error.hint}")
    modules = tools.kernel.load_order(("virtio_blk",))
    files: dict[str, bytes | Path] = {"init": (BEGIN + USE).encode(), "bin/busybox": tools.busybox}
    files |= {f"modules/{number:02}-{module}.ko": code for number, (module, code) in enumerate(modules.items())}
    files |= tools.program(FIO)
    (folder / "initrd").write_bytes(archive(files, {"bin/sh": "busybox"}))
    words = ["--kernel", str(tools.kernel.image), "--append", QUIET, "--memory", "256", "--cpus", "2"]
    (folder / "plan").write_text(json.dumps([*words, "--initrd", str(folder / "initrd")]))
    said: list[bytes] = []
    command = ["env", f"PYTHONPATH={HERE.parent}", sys.executable, str(HERE / "move_runs.py"), str(folder / "plan")]

    def hear(data: bytes) -> None:
        said.append(data)
        print(data.decode(errors="replace"), end="", flush=True)

    run(tools, bed, command, output=hear, timeout=PATIENCE, folder=HERE)
    lines = b"".join(said).decode().splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"save"')]
    assert found, lines
    return dict(found[0])


def test_it_is_saved_at_a_text_and_goes_on_in_a_new_process(moved: dict[str, Any]) -> None:
    assert moved["save"]["status"] == 0, moved
    assert "The guest was saved to saved: " in moved["save"]["output"]
    assert "round 2 of /dev/nvme0n1" in moved["second"]
    assert re.search(r"The guest was restored from saved: [\d.]+ MiB of RAM in [\d.]+ s", moved["move"]["output"])


def test_it_moves_and_powers_off_where_it_has_come(moved: dict[str, Any]) -> None:
    assert moved["move"]["status"] == 0, moved
    assert re.search(r"The guest was moved to move\.sock: \d+ rounds?, [\d.]+ MiB in all", moved["move"]["output"])
    assert moved["end"]["status"] == 0, moved
    assert "The guest powered off after" in moved["end"]["output"]
    assert moved["figures"]["pause"] > 0


def test_only_what_was_written_meanwhile_is_copied_again(moved: dict[str, Any]) -> None:
    first = moved["figures"]["rounds"][0]["bytes"]
    assert 0 < moved["figures"]["rest"] < first / 4


def test_every_byte_is_as_it_was_written_and_the_kernel_has_nothing_to_say(moved: dict[str, Any]) -> None:
    said = moved["first"] + moved["second"] + moved["third"]
    assert "fio failed" not in said
    for disk in ("/dev/nvme0n1", "/dev/vda"):
        assert said.count(f" of {disk}") == ROUNDS
    assert "the kernel has said:\nnothing\nall done\n" in moved["third"]
