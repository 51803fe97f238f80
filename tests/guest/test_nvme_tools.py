"""nvme-cli in a stock Linux: the commands that tools expect of a disk, one boot for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from attached import Device
from linux import Outcome

pytestmark = pytest.mark.guest

NVME = "usr/sbin/nvme"
MIB = 1 << 20
START = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
gone() { n=0; while [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 8; usleep 50000; done; }
until_shown() { n=0; until "$@" | grep -q "$what"; do n=$((n + 1)); [ $n -lt 200 ] || exit 7; usleep 50000; done; }
await /dev/nvme0n1
dd if=/dev/urandom of=/tmp/page bs=4k count=1 2>/dev/null
C=/dev/nvme0 N=/dev/nvme0n1
"""


class Step(NamedTuple):
    """A command in the guest, the status it ends with, and what its output holds (regular expressions)."""

    script: str
    shows: tuple[str, ...] = ()
    status: int = 0


STEPS = [
    # what the controller says of itself
    Step(
        "nvme id-ctrl $C",
        (
            r"oacs +: 0x11a\b",
            r"oncs +: 0x1df\b",
            r"sanicap +: 0x60000002\b",
            r"nn +: 32\b",
            r"lpa +: 0x1e\b",
            r"tnvmcap +: 12582912\b",
            r"unvmcap +: 4194304\b",
            r"pels +: 1\b",
            r"edstt +: 2\b",
            r"cntlid +: 0x1\b",
        ),
    ),
    Step(
        "nvme id-ns $N",
        (
            r"nlbaf +: 1\b",
            r"lbaf  0 : ms:0   lbads:9 .*in use",
            r"lbaf  1 : ms:0   lbads:12",
            r"eui64 +: 024257",
            r"nguid +: [0-9a-f]{16}024257",
        ),
    ),
    Step("nvme ns-descs $N", (r"eui64 +: 024257", r"nguid +: [0-9a-f]{16}024257", r"uuid +: [0-9a-f]{8}-")),
    Step("nvme get-log $C -i 5 -l 2048 -b | od -A d -t x4", (r"^0000512 00010007\b", r"^0000528 00020003\b")),
    # compare, verify, copy, write uncorrectable
    Step("nvme write $N -s 8 -c 7 -z 4096 -d /tmp/page", (r"Success",)),
    Step("nvme compare $N -s 8 -c 7 -z 4096 -d /tmp/page", (r"Success",)),
    Step("nvme compare $N -s 0 -c 7 -z 4096 -d /tmp/page", (r"(?i)compare failure",), 1),
    Step("nvme copy $N -d 100 -s 8,8 -b 3,3", (r"success",)),
    Step("nvme read $N -s 104 -c 3 -z 2048 2>/dev/null | cmp - /tmp/page -n 2048", ()),
    Step("nvme verify $N -s 0 -c 1000", (r"Success",)),
    Step("nvme write-uncor $N -s 200 -c 7", (r"Success",)),
    Step("nvme verify $N -s 200 -c 0", (r"(?i)unrecovered read error",), 1),
    Step("dd if=$N of=/dev/null bs=512 skip=203 count=1 iflag=direct", (r"No data available",), 1),
    Step("nvme write $N -s 200 -c 7 -z 4096 -d /tmp/page && nvme verify $N -s 200 -c 7", (r"Verify Success",)),
    # self-tests
    Step("nvme device-self-test $C -n 1 -s 1", (r"(?i)short device self-test started",)),
    Step(
        "what='Operation Result *: 0' until_shown nvme self-test-log $C -e 1; nvme self-test-log $C -e 1",
        (r"Operation Result +: 0\b", r"Self Test Code +: 1\b"),
    ),
    Step("nvme device-self-test $C -n 1 -s 2", (r"(?i)extended device self-test started",)),
    Step(
        "what='Self Test Code *: 2' until_shown nvme self-test-log $C -e 1; nvme self-test-log $C -e 2",
        (r"Self Test Code +: 2\b", r"Self Test Code +: 1\b"),
    ),
    # the clock
    Step("nvme set-feature $C -f 0x0e -V 1700000000000", (r"set-feature:0x0e",)),
    Step("nvme get-feature $C -f 0x0e -H", (r"Nov 14 22:13:.. 2023", r"using a Set Features command")),
    # telemetry and events
    Step("nvme telemetry-log $C -O /tmp/telemetry -g 1 -d 1 && strings /tmp/telemetry", (r'"namespaces"',)),
    Step("nvme get-log $C -i 8 -l 512 -b | od -A d -t x1 | head -n 1", (r"^0000000 08 00 00 00 00 57 42 02 ",)),
    Step(
        "nvme persistent-event-log $C -a 1 -l 512 >/dev/null; nvme persistent-event-log $C -a 0",
        (r"(?i)Power-on or Reset", r"(?i)SMART/Health Log Snapshot", r"(?i)Timestamp Change"),
    ),
    Step("nvme persistent-event-log $C -a 2", ()),
    # format
    Step("nvme format $N -l 1 -s 1 --force", (r"Success formatting namespace:1",)),
    Step(
        "cat /sys/block/nvme0n1/queue/logical_block_size; nvme id-ns $N",
        (r"^4096\n", r"lbaf  1 : ms:0   lbads:12 .*in use"),
    ),
    Step("dd if=$N bs=1M 2>/dev/null | tr -d '\\000' | wc -c", (r"^0\n",)),
    Step("nvme format $N -l 0 --force && cat /sys/block/nvme0n1/queue/logical_block_size", (r"^512$",)),
    Step("nvme format $N -l 0 -s 2 --force", (r"(?i)invalid field",), 1),
    Step("nvme format $N -l 0 -i 1 --force", (r"(?i)format",), 1),
    # namespaces
    Step("nvme create-ns $C -s 2048 -c 2048 -f 0", (r"created nsid:2",)),
    Step("nvme list-ns $C --all", (r"\]:0x1\n", r"\]:0x2\b")),
    Step("nvme attach-ns $C -n 2 -c 1 && await /dev/nvme0n2 && cat /sys/block/nvme0n2/size", (r"^2048$",)),
    Step(
        "for what in write compare; do nvme $what /dev/nvme0n2 -s 0 -c 7 -z 4096 -d /tmp/page; done",
        (r"compare: Success",),
    ),
    Step("nvme list-ctrl $C -n 2", (r"0x1\b",)),
    Step("nvme detach-ns $C -n 2 -c 1 && gone /dev/nvme0n2", ()),
    Step("nvme delete-ns $C -n 2 && nvme list-ns $C --all", (r"deleted nsid:2", r"\]:0x1\b")),
    Step("nvme create-ns $C -s 99999 -c 99999 -f 0", (r"(?i)insufficient capacity",), 1),
    # sanitize
    Step("dd if=/tmp/page of=$N oflag=direct 2>/dev/null; nvme sanitize $C -a 2", ()),
    Step(
        "what='SSTAT.*0x1$' until_shown nvme sanitize-log $C; nvme sanitize-log $C",
        (r"SPROG.*65535", r"SSTAT.*0x1$", r"SCDW10.*0x2$"),
    ),
    Step("dd if=$N bs=1M iflag=direct 2>/dev/null | tr -d '\\000' | wc -c", (r"^0\n",)),
    Step("nvme sanitize $C -a 4", (r"(?i)invalid field",), 1),
    Step(
        "nvme persistent-event-log $C -a 1 && nvme persistent-event-log $C -a 0 && nvme persistent-event-log $C -a 2",
        (
            r"(?i)Format NVM Start",
            r"(?i)Format NVM Completion",
            r"(?i)Sanitize Start",
            r"(?i)Sanitize Completion",
            r"(?i)Change Namespace",
        ),
    ),
    Step("nvme error-log $C -e 1", (r"status_field",)),
    Step("dmesg | grep -iE 'nvme.*(timeout|reset controller|unable)'", (), 1),
]


def test_nvme_cli_does_with_the_disk_what_it_can_do_with_others(linux: Callable[..., Outcome], tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"1" * (8 * MIB))
    steps = [
        f"echo '=== {number}'; ( {step.script} ) 2>&1; status=$?; echo; echo \"=== ended $status\"\n"
        for number, step in enumerate(STEPS)
    ]
    disk = Device(
        "nvme", {"image": str(image), "serial": "BELL0001", "capacity": "4M", "store": str(tmp_path / "store")}
    )
    outcome = linux(START + "".join(steps), disk, programs=[NVME])
    found = re.findall(r"^=== (\d+)\n(.*?)^=== ended (\d+)$", outcome.output, re.MULTILINE | re.DOTALL)
    wrong: list[str] = []
    for number, output, status in found:
        step = STEPS[int(number)]
        wrong += [
            f"{step.script}: no {text!r} in\n{output}"
            for text in step.shows
            if not re.search(text, output, re.MULTILINE)
        ]
        if bool(int(status)) != bool(step.status):
            wrong.append(f"{step.script}: status {status}\n{output}")
    assert not wrong, "\n".join(wrong)
    assert len(found) == len(STEPS)
    assert image.read_bytes() == bytes(8 * MIB)
