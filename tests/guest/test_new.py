"""What ``bellwire new`` writes works before the first edit: each kind's driver, and the one in user space, in Linux."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from attached import Device, Served
from bellwired.commands.template import KINDS, write
from bellwired.guest.archive import ArchiveError
from bellwired.guest.build import build_modules
from bellwired.guest.headers import tree_of
from bellwired.guest.toolbox import Toolbox
from linux import Outcome
from python import python
from rendezvous import joined

pytestmark = pytest.mark.guest

IMPORTED = ("__future__", "ctypes", "mmap", "os", "pathlib", "re", "select", "struct", "time", "typing")
NAMES = {kind: f"my_{kind.replace('-', '_')}" for kind in KINDS}
IDS = {
    "plain": ("0x1234", "0x0001"),
    "dma-ring": ("0x1234", "0x0002"),
    "framebuffer": ("0x1234", "0x0003"),
    "serial": ("0x1234", "0x0004"),
    "virtio": ("0x1af4", "0x107f"),
}
START = """
export PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1
find_device() {
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/vendor) $(cat $device/device)" = "$1 $2" ] && basename $device
    done
}
"""
KERNEL = """
insmod /root/{name}.ko || {{ dmesg | tail -n 20; exit 1; }}
dmesg | grep -o '{name} works: .*'
"""
SERIAL = """
port=$(dmesg | sed -n 's/.*works: .dev.\\(ttyS[0-9]*\\)$/\\1/p')
stty -F /dev/$port 115200 raw -echo clocal
exec 3<>/dev/$port
echo hello >&3
read -r back <&3
exec 3>&-
echo "at the other end: $back"
"""
FRAMEBUFFER = """
cat /sys/class/graphics/fb0/name /sys/class/graphics/fb0/virtual_size
echo {there} >/sys/bus/pci/drivers/{name}/unbind
"""
USER = """
there=$(find_device {vendor} {device})
rmmod {name} || exit 2
[ ! -e /sys/bus/pci/devices/$there/driver ] || echo $there >/sys/bus/pci/devices/$there/driver/unbind
echo {vendor} {device} | sed 's/0x//g' >/sys/bus/pci/drivers/uio_pci_generic/new_id || exit 3
python3.13 -S /root/driver/{name}_user.py || {{ dmesg | tail -n 20; exit 4; }}
"""
EXPECTED = """\
my_plain works: 1 to 100 make 5050
my_dma_ring works: 40 copies of 64 bytes
my_virtio works: 100 answers of 64 bytes
my_serial works: /dev/ttyS1
at the other end: HELLO
my_framebuffer works: /dev/fb0, 640 x 480 pixels
my_framebuffer
640,480
my_plain works: 1 to 100 make 5050 (an interrupt came)
my_dma_ring works: 20 copies of 64 bytes (by interrupts)
my_virtio works: 10 answers (by interrupts)
my_serial works: 5 bytes (by interrupts)
my_framebuffer works: 1 red picture of 1228800 bytes (by interrupts)
"""


def script() -> str:
    """Load each driver, see what it says, and unload it; then run each driver in user space."""
    steps = [START]
    for kind, name in NAMES.items():
        steps.append(KERNEL.format(name=name))
        if kind == "serial":
            steps.append(SERIAL)
        if kind == "framebuffer":
            vendor, device = IDS[kind]
            steps.append(FRAMEBUFFER.format(name=name, there=f"$(find_device {vendor} {device})"))
    for kind, name in NAMES.items():
        vendor, device = IDS[kind]
        steps.append(USER.format(name=name, vendor=vendor, device=device))
    return "".join(steps)


@pytest.fixture
def written(tools: Toolbox, tmp_path: Path) -> dict[str, Path]:
    """The folder of each kind, its driver built."""
    folders = {}
    for kind, name in NAMES.items():
        folders[kind] = tmp_path / name
        write(name, folders[kind], kind)
    try:
        tree_of(tools.kernel)
    except (ArchiveError, OSError) as error:
        pytest.skip(f"the drivers cannot be built: {error}")
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda folder: build_modules(folder / "driver", tools.kernel), folders.values()))
    assert [each.warnings for each in built] == [""] * len(folders)
    return folders


def test_every_kinds_drivers_work_in_linux(
    tools: Toolbox,
    written: dict[str, Path],
    linux: Callable[..., Outcome],
    serve: Callable[[Device], Served],
    tmp_path: Path,
) -> None:
    files: dict[str, bytes | Path] = python(tools, IMPORTED)
    (tmp_path / "picture.ppm").touch()
    served = []
    for kind, folder in written.items():
        name = NAMES[kind]
        options: dict[str, dict[str, Any]] = {
            "serial": {"backend": f"unix:{tmp_path / 'line'}"},
            "framebuffer": {"picture": tmp_path / "picture.ppm"},
        }
        flags = ("--no-sandbox",) if kind == "serial" else ()  # it makes a socket
        served.append(serve(Device(str(folder / f"{name}.py"), options.get(kind, {}), flags=flags)))
        files[f"root/{name}.ko"] = folder / "driver" / f"{name}.ko"
        for file in ("user_pci.py", f"{name}_user.py", f"{name}_regs.h"):
            files[f"root/driver/{file}"] = folder / "driver" / file

    with joined(tmp_path / "line") as far, far.makefile("rb") as heard, ThreadPoolExecutor(1) as other_end:

        def shout() -> bytes:
            line = heard.readline()
            far.sendall(line.upper())
            return line

        said = other_end.submit(shout)
        outcome = linux(script(), *served, files=files, modules=["uio_pci_generic"], timeout=240)
        assert (outcome.status, outcome.output) == (0, EXPECTED), outcome.console
    assert said.result() == b"hello\n"
    head, _, colours = (tmp_path / "picture.ppm").read_bytes().partition(b"\n")
    assert head == b"P6 640 480 255"
    assert colours == b"\xff\0\0" * (640 * 480)
    assert not re.search(r"BUG:|WARNING:|Oops|Call Trace", outcome.console)
