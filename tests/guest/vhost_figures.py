"""A disk in a back end's hands: through our device, and through QEMU's own vhost-user-blk.

``python tests/guest/vhost_figures.py`` prints the figures as JSON. Each disk is an image in the page cache, and a
qemu-storage-daemon of its own serves it. Two guests are booted, the same Linux in two QEMUs:

* Debian's: QEMU's own vhost-user-blk, and ours, which is rung by message.
* The one with our patches: ours, which is rung by descriptor. That QEMU is built without vhost-user-blk.

They are two versions and builds of QEMU, and both are emulated (TCG). So each guest also has a virtio-blk of QEMU's
own: what the same device does in both tells what the builds do to a figure. In a guest, the disks take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import vhost_backends
from attached import Device, running
from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from figures import FIO, MIB, OURS, RUNTIME, THEIRS, Figure, parse
from figures import LOADS as ALL_LOADS
from linux import Guest
from patched import BuildError, built
from provision import provision

MESSAGE = f"{OURS}, by message"
STOCK, PATCHED = "virtio-blk, stock", "virtio-blk, patched"
IN_STOCK, IN_PATCHED = (THEIRS, MESSAGE, STOCK), (OURS, PATCHED)
LOADS = ALL_LOADS[:3]
FIND = "disk() { for d in /sys/block/vd*; do [ $(cat $d/size) = $1 ] && echo /dev/${d##*/}; done; }"
QUEUE = 256  # entries, as of our device


def script(disks: Sequence[str], rounds: int) -> str:
    """What the guest does: a line for each figure. The guest finds each disk by its size, which is another one."""
    lines = [FIND]
    for number in range(len(disks)):
        sectors = _mib(number) << 11
        lines += [f"n=0; until [ $(disk {sectors}) ]; do n=$((n + 1)); [ $n -lt 500 ] || exit 9; sleep 0.02; done"]
    fio = f"fio --name=x --ioengine=libaio --direct=1 --time_based --runtime={RUNTIME} --minimal"
    numbers = [*range(len(disks))]
    for _ in range(rounds):
        numbers = numbers[1:] + numbers[:1]
        for load in LOADS:
            for number in numbers:
                at, found = f"$(disk {_mib(number) << 11})", f"$(tail -n 1 /out | cut -d ';' -f {load.word})"
                lines += [f"{fio} --filename={at} {load.options} >/out 2>&1 || {{ cat /out; exit 1; }}"]
                lines += [f"echo 'figure@{load.name}@{disks[number]}@'\"{found}@{load.unit}\""]
    return "\n".join(lines) + "\n"


def _mib(number: int) -> int:
    return MIB + number


def measure(tools: Toolbox, disks: Sequence[str], folder: Path, rounds: int) -> list[Figure]:
    """Boot a guest with these disks, and load them."""
    folder.mkdir()
    devices, arguments = [], []
    with ExitStack() as stack:
        for number, whose in enumerate(disks):
            socket, image, served = (folder / f"{number}.{kind}" for kind in ("socket", "image", "served"))
            image.write_bytes(os.urandom(1 << 20) * _mib(number))
            if whose in (STOCK, PATCHED):
                arguments += ["-drive", f"file={image},format=raw,if=none,id=own,cache=writeback,aio=threads"]
                arguments += ["-device", f"virtio-blk-pci,drive=own,num-queues=1,queue-size={QUEUE}"]
                continue
            stack.enter_context(vhost_backends.running(vhost_backends.storage_daemon(tools, image, socket), socket))
            if whose == THEIRS:
                arguments += ["-chardev", f"socket,id=vhost,path={socket}"]
                arguments += ["-device", f"vhost-user-blk-pci,chardev=vhost,num-queues=1,queue-size={QUEUE}"]
            else:
                device = Device("vhost", {"type": "blk", "backend": f"unix:{socket}"})
                stack.enter_context(running(device, served))
                devices.append(Plugged(served / "device"))
        guest, words = Guest(tools, folder), script(disks, rounds)
        outcome = guest.run(
            words, devices, modules=["virtio_blk"], programs=[FIO], arguments=arguments, timeout=60 + 60 * rounds
        )
    if outcome.status:
        raise AssertionError(f"the guest's script has ended with status {outcome.status}:\n{outcome.output}")
    return list(parse(outcome.output))


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
        with tempfile.TemporaryDirectory(prefix="bellwire-figures-") as name:
            found = measure(tools, IN_STOCK, Path(name) / "stock", arguments.rounds)
            found += measure(patched, IN_PATCHED, Path(name) / "patched", arguments.rounds)
    except (ArchiveError, BuildError, OSError) as error:
        print(f"no figures of a vhost-user back end: {error}", file=sys.stderr)
        return 1
    assert {figure.whose for figure in found} == {*IN_STOCK, *IN_PATCHED}
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
