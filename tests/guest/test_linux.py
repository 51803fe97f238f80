"""What a stock Linux sees of our devices in a stock QEMU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attached import Device
from linux import Outcome

pytestmark = pytest.mark.guest

LOOK = """
cd /sys/bus/pci/devices
for device in *; do
    case "$(cat $device/vendor $device/device)" in
    0x1234*)
        echo "$(cat $device/device) class $(cat $device/class) revision $(cat $device/revision)"
        sed '/^0x0* 0x0* 0x0*$/d' $device/resource | while read first last flags; do
            echo "$((last - first + 1)) ${flags#0x00000000}"
        done
        case $(cat $device/irq) in 0) echo "no line";; *) echo "a line";; esac
    esac
done
"""
SEEN = """\
0xbe11 class 0x088000 revision 0x00
4096 00040200
4096 00040200
16 00040101
4096 00040200
no line
0x11e8 class 0x00ff00 revision 0x10
1048576 00040200
a line
"""


def test_linux_finds_the_devices_and_gives_them_their_bars(linux: Callable[..., Outcome]) -> None:
    outcome = linux(LOOK, Device("bell"), Device("edu"))
    assert (outcome.status, outcome.output) == (0, SEEN)


PROGRAMS = ("usr/bin/fio", "usr/sbin/nvme", "usr/sbin/mke2fs")
VERSIONS = """
fio --version && nvme version && mke2fs -V 2>&1 || exit 1
grep -c ^uio_pci_generic /proc/modules
cat greeting
exit 3
"""


def test_programs_modules_and_files_are_there_and_the_scripts_status_is_told(linux: Callable[..., Outcome]) -> None:
    outcome = linux(VERSIONS, programs=PROGRAMS, modules=["uio_pci_generic"], files={"root/greeting": b"hello"})
    assert outcome.status == 3
    assert outcome.output.endswith("\n1\nhello")
