"""What is changed while a Linux guest runs, it sees at once: the cable of its card, the size of its disk."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.plan import Plugged
from daemon.commands import bellwire
from linux import Outcome
from operating.instance import Instance
from rendezvous import joined
from virtio.namespace import Namespace

pytestmark = pytest.mark.guest

TAP = "bwlive0"
AT_ONCE = 30.0  # seconds, on a loaded machine; it is a few hundredths, and without a notice it is never
WATCH = """
stty -F /dev/ttyS1 raw -echo
exec 3>/dev/ttyS1
shown() { until [ "$(cat $1 2>/dev/null)" = $2 ]; do :; done; echo $2 >&3; }
"""
SENT = "exec 3>&-  # this waits until all is sent; the end of a session does not\n"


class Conversation:
    """What the guest says on its second serial port, a line each."""

    def __init__(self, far: socket.socket) -> None:
        self._lines = far.makefile("rb")

    def hears(self, text: str) -> float:
        """Wait for a line; the seconds that took."""
        start = time.monotonic()
        assert self._lines.readline().decode().strip() == text
        return time.monotonic() - start

    def close(self) -> None:
        self._lines.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Instance]:
    with Instance(tmp_path / "daemon") as running:
        yield running


@pytest.fixture
def talk(linux: Callable[..., Outcome], tmp_path: Path) -> Callable[..., None]:
    """Run a script in a guest, and ``visit`` it meanwhile."""

    def talk(script: str, device: Plugged, visit: Callable[[Conversation], None], **options: Any) -> None:
        path = tmp_path / "line"

        def sit_there() -> None:
            with joined(path) as far:
                conversation = Conversation(far)
                visit(conversation)
                conversation.close()

        line = ["-serial", f"unix:{path},server=on,wait=off"]
        with ThreadPoolExecutor(1) as visitor:
            visited = visitor.submit(sit_there)
            outcome = linux(WATCH + script + SENT, device, arguments=line, timeout=240, **options)
            visited.result()
        assert outcome.status == 0, outcome.output

    return talk


def change(daemon: Instance, setting: str) -> None:
    """As an administrator does."""
    done = bellwire("set", "live", setting, *daemon.places)
    assert (done.returncode, done.stderr) == (0, "")


CABLE = """
ip link set eth0 up
shown /sys/class/net/eth0/carrier 1
shown /sys/class/net/eth0/carrier 0
shown /sys/class/net/eth0/operstate down
shown /sys/class/net/eth0/carrier 1
"""


def test_the_guest_sees_its_cable_pulled_and_plugged_in(
    talk: Callable[..., None], daemon: Instance, namespace: Namespace
) -> None:
    options = f'tap = "{TAP}"\nnamespace = "{namespace.name}"\n'
    path = daemon.configure("live", f'device = "virtio-net"\n[options]\n{options}')
    daemon.reload()

    def visit(guest: Conversation) -> None:
        guest.hears("1")
        assert namespace.link(TAP).get("carrier") == 1
        change(daemon, "link=down")
        assert guest.hears("0") < AT_ONCE
        guest.hears("down")
        assert namespace.link(TAP).get("carrier") == 0
        change(daemon, "link=up")
        assert guest.hears("1") < AT_ONCE
        assert namespace.link(TAP).get("carrier") == 1

    talk(CABLE, Plugged(path), visit, modules=["virtio_net"])


MIB = 2048  # sectors
DISK = f"""
shown /sys/block/DISK/size {64 * MIB}
shown /sys/block/DISK/size {96 * MIB}
dd if=/dev/urandom of=/written bs=1M count=1 2>/dev/null
dd if=/written of=/dev/DISK bs=1M seek=95 oflag=direct 2>/dev/null || exit 1
dd if=/dev/DISK bs=1M skip=95 iflag=direct 2>/dev/null | cmp - /written || exit 2
echo kept >&3
shown /sys/block/DISK/size {32 * MIB}
shown /sys/block/DISK/size {48 * MIB}
"""


@pytest.mark.parametrize(("kind", "disk", "modules"), [("virtio-blk", "vda", ["virtio_blk"]), ("nvme", "nvme0n1", [])])
def test_the_guest_sees_its_disk_grow_and_shrink(
    talk: Callable[..., None], daemon: Instance, tmp_path: Path, kind: str, disk: str, modules: list[str]
) -> None:
    """By a notice (virtio: a configuration change; NVMe 1.4 §5.2): nobody in the guest asks for a rescan."""
    image = tmp_path / "image"
    path = daemon.configure("live", f'device = "{kind}"\n[options]\nimage = "{image}"\nsize = "64M"\n')
    daemon.reload()

    def visit(guest: Conversation) -> None:
        guest.hears(str(64 * MIB))
        change(daemon, "size=96M")
        assert guest.hears(str(96 * MIB)) < AT_ONCE
        guest.hears("kept")
        change(daemon, "shrink=yes")
        change(daemon, "size=32M")
        assert guest.hears(str(32 * MIB)) < AT_ONCE
        assert image.stat().st_size == 32 << 20
        os.truncate(image, 48 << 20)
        change(daemon, "size=0")
        assert guest.hears(str(48 * MIB)) < AT_ONCE

    talk(DISK.replace("DISK", disk), Plugged(path), visit, modules=modules)
