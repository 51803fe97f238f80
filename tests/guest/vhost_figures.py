"""A disk in a back end's hands: ours under the QEMU with our patches, and QEMU's own vhost-user-blk under Debian's.

``python tests/guest/vhost_figures.py`` prints the figures as JSON. The same guest, the same kind of back end
(qemu-storage-daemon), and an image in the page cache; the guests take turns. Under our QEMU each notification goes to
the back end by the doorbell's eventfd, as it does for QEMU's own device. That QEMU is built without a vhost-user device
of its own, so the other guest runs in Debian's. Both are emulated (TCG).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import vhost_backends
from attached import Device, running
from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from figures import FIO, MIB, OURS, THEIRS, WHOSE, Figure, parse
from figures import LOADS as ALL_LOADS
from linux import Guest
from patched import BuildError, built
from provision import provision

LOADS = ALL_LOADS[:3]
SECONDS = 2


def script() -> str:
    """What the guest does, without whose device it is."""
    fio = f"fio --name=x --ioengine=libaio --direct=1 --time_based --runtime={SECONDS} --minimal --filename=/dev/vda"
    lines = ["n=0; until [ -b /dev/vda ]; do n=$((n + 1)); [ $n -lt 500 ] || exit 9; sleep 0.02; done"]
    for load in LOADS:
        lines += [f"{fio} {load.options} >/out 2>&1 || {{ cat /out; exit 1; }}"]
        lines += [f"echo figure@{load.name}@whose@$(tail -n 1 /out | cut -d ';' -f {load.word})@{load.unit}"]
    return "\n".join(lines) + "\n"


def measure(tools: Toolbox, whose: str, folder: Path) -> list[Figure]:
    """Boot a guest with one disk, and load it."""
    folder.mkdir()
    socket, image = folder / "socket", folder / "image"
    image.write_bytes(os.urandom(1 << 20) * MIB)
    devices, arguments = [], []
    with ExitStack() as stack:
        stack.enter_context(vhost_backends.running(vhost_backends.storage_daemon(tools, image, socket), socket))
        if whose == OURS:
            device = Device("vhost", {"type": "blk", "backend": f"unix:{socket}"})
            stack.enter_context(running(device, folder / "served"))
            devices.append(Plugged(folder / "served" / "device"))
        else:
            arguments += ["-chardev", f"socket,id=vhost,path={socket}", "-device", "vhost-user-blk-pci,chardev=vhost"]
        guest = Guest(tools, folder)
        outcome = guest.run(script(), devices, modules=["virtio_blk"], programs=[FIO], arguments=arguments, timeout=200)
    if outcome.status:
        raise AssertionError(f"the guest's script has ended with status {outcome.status}:\n{outcome.output}")
    return [each._replace(whose=whose) for each in parse(outcome.output)]


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    try:
        tools = provision()
        patched = built(tools)
        if patched is None:
            raise BuildError("there is no patched QEMU; make qemu builds it")
        found = []
        with tempfile.TemporaryDirectory(prefix="bellwire-figures-") as name:
            for number in range(arguments.rounds):
                for whose in WHOSE if number % 2 else WHOSE[::-1]:
                    under = patched if whose == OURS else tools
                    found += measure(under, whose, Path(name) / f"{whose}-{number}")
    except (ArchiveError, BuildError, OSError) as error:
        print(f"no figures of a vhost-user back end: {error}", file=sys.stderr)
        return 1
    assert {figure.whose for figure in found} == {OURS, THEIRS}
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
