"""PCI as silicon has it, seen by Linux in a stock QEMU: many functions and vectors, a large BAR, a ROM, hot-plug.

All tests look at one boot: what the guest has printed, part by part. One serial port of the guest is a conversation:
the guest says how far it is, and waits until the host has plugged, pulled or killed something.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import silicon
from attached import Device, running
from bellwired.guest.plan import Plugged
from bellwired.guest.qmp import Qmp
from bellwired.guest.toolbox import Toolbox
from linux import Guest, Outcome
from machine import NATIVE_HOT_PLUG
from qtest import monitor
from rendezvous import joined

pytestmark = pytest.mark.guest

SLOT = "/sys/bus/pci/devices/0000:01:00.0"
SCRIPT = f"""
stty -F /dev/ttyS2 raw -echo
exec 3<>/dev/ttyS2
say() {{ echo "$1" >&3; read -r answer <&3; }}
await() {{
    tries=0
    until eval "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 2000 ] || {{ echo "never: $1"; dmesg | tail; exit 1; }}
        sleep 0.02
    done
}}
part() {{ echo "== $1"; }}
cd /sys/bus/pci/devices

say ready
await "[ -e {SLOT}/driver ]"
part plugged
readlink {SLOT}/driver
echo first >/dev/ttyS3
say plugged

part functions
for function in 0000:00:10.*; do
    echo "$function $(cat $function/device) $(xxd -s 14 -l 1 -p $function/config)"
done
echo 1 >0000:00:10.0/enable
for bar in 0 2; do
    part bar$bar
    sed -n "$((bar + 1))p" 0000:00:10.0/resource
    last=$(printf '%#x' $(($(sed -n "$((bar + 1))p" 0000:00:10.0/resource | cut -d ' ' -f 2) - 3)))
    devmem $last 32
    devmem $last 32 0x12345678
    devmem $last 32
done
part vectors
xxd -s 0x4a -l 2 -p 0000:00:10.0/config
tail -n +6 0000:00:10.0/resource | head -1
part rom
echo 1 >0000:00:10.1/rom
xxd -l 4 -p 0000:00:10.1/rom

await "[ ! -e {SLOT} ]"
part unplugged
dmesg | grep -io 'pciehp: .*button.*'
say unplugged

await "[ -e {SLOT}/driver ]"
echo second >/dev/ttyS3
say again
part dead
xxd -l 4 -p {SLOT}/config
echo third 2>&1 >/dev/ttyS3
echo $?
echo 0 >/sys/bus/pci/slots/1/power
await "[ ! -e {SLOT} ]"
say pulled
await "[ -e {SLOT}/driver ]"
part back
echo fourth >/dev/ttyS3
say back
dmesg | grep -E 'Oops|BUG|Call Trace'
exit 0
"""


class Told:
    """What the guest has printed, by part, and what has reached the serial device's files."""

    def __init__(self, outcome: Outcome, texts: list[str]) -> None:
        self.outcome = outcome
        self.texts = texts

    def __getitem__(self, part: str) -> list[str]:
        parts = dict(each.split("\n", 1) for each in self.outcome.output.split("== ")[1:])
        return parts[part].splitlines()


class Host:
    """The host's side of the conversation."""

    def __init__(self, far: socket.socket, control: Qmp) -> None:
        self._far = far
        self._lines = far.makefile("rb")
        self.control = control

    def hears(self, text: str) -> None:
        assert self._lines.readline().decode().strip() == text

    def answers(self) -> None:
        self._far.sendall(b"go on\n")

    def plug(self, path: Path) -> None:
        self.control.ask("device_add", bus="root", id="it", **json.loads(Plugged(path).argument))

    def close(self) -> None:
        self._lines.close()


@pytest.fixture(scope="module")
def told(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("silicon")
    line, qmp = folder / "line", folder / "qmp"
    with ExitStack() as stack:

        def port(number: int) -> subprocess.Popen[bytes]:
            device = Device("serial", {"backend": f"file:{folder}/text{number}"})
            return stack.enter_context(running(device, folder / f"port{number}"))

        def visit() -> None:
            with joined(line) as far, closing(monitor(qmp)) as control, closing(Host(far, control)) as host:
                host.hears("ready")
                host.plug(folder / "port1/device")
                host.answers()
                host.hears("plugged")
                control.ask("device_del", id="it")
                host.answers()
                host.hears("unplugged")
                control.wait("DEVICE_DELETED", device="it")
                host.plug(folder / "port1/device")
                host.answers()
                host.hears("again")
                first.kill()
                first.wait()
                host.answers()
                host.hears("pulled")
                control.wait("DEVICE_DELETED", device="it")
                host.plug(folder / "port2/device")
                host.answers()
                host.hears("back")
                host.answers()

        stack.enter_context(running(Device(silicon.__file__), folder / "card"))
        first, _ = port(1), port(2)
        card = [
            Plugged(folder / f"card/device.{n}", properties={"addr": f"10.{n}", "multifunction": True}) for n in (0, 1)
        ]
        guest = Guest(tools, folder)
        more = ["-device", "pcie-root-port,id=root,slot=1", "-qmp", f"unix:{qmp},server=on,wait=off"]
        more += ["-serial", f"unix:{line},server=on,wait=off"]
        with ThreadPoolExecutor(1) as visitor:
            visited = visitor.submit(visit)
            outcome = guest.run(SCRIPT, card, board=NATIVE_HOT_PLUG, arguments=more, timeout=120)
            assert outcome.status == 0, f"{outcome.output}\n{outcome.console}"
            visited.result()
        yield Told(outcome, [Path(folder, f"text{number}").read_text() for number in (1, 2)])


def test_linux_finds_both_functions_in_one_slot(told: Told) -> None:
    assert told["functions"] == [
        f"0000:00:10.0 {silicon.ENGINE:#06x} 80",
        f"0000:00:10.1 {silicon.CONSOLE:#06x} 80",
    ]


@pytest.mark.parametrize(("part", "reset"), [("bar0", 0x0BAD_CAFE), ("bar2", 0)], ids=["registers", "area"])
def test_linux_reads_and_writes_the_last_word_of_64_gib(told: Told, part: str, reset: int) -> None:
    resource, before, after = told[part]
    first, last, flags = (int(word, 16) for word in resource.split())
    assert (last - first + 1, first % silicon.SIZE) == (silicon.SIZE, 0)
    assert flags & 0x10_2000 == 0x10_2000  # IORESOURCE_MEM_64 and IORESOURCE_PREFETCH
    assert (int(before, 16), int(after, 16)) == (reset, 0x1234_5678)


def test_linux_sees_a_table_of_2048_vectors(told: Told) -> None:
    control, resource = told["vectors"]
    first, last, _ = (int(word, 16) for word in resource.split())
    assert int.from_bytes(bytes.fromhex(control), "little") & 0x7FF == 2047
    assert last - first + 1 == 1 << 16


def test_linux_reads_the_expansion_rom(told: Told) -> None:
    assert told["rom"] == ["55aa01e9"]


def test_a_device_that_is_plugged_in_gets_its_driver(told: Told) -> None:
    assert told["plugged"][-1].endswith("/drivers/serial")
    assert told.texts[0].startswith("first")


def test_linux_takes_a_device_out_when_qemu_presses_its_button(told: Told) -> None:
    assert told["unplugged"][-1] == "pciehp: Slot(1): Button press: will power off in 5 sec"


def test_a_device_whose_server_is_killed_reads_as_ones_and_its_driver_survives(told: Told) -> None:
    config, *error, status = told["dead"]
    assert config == "ffffffff"
    assert (bool(error), status) == (True, "1")
    assert told.texts[0].replace("\r", "").split() == ["first", "second"]


def test_the_slot_is_emptied_by_its_power_and_takes_another_device(told: Told) -> None:
    assert told["back"] == []
    assert told.texts[1].split() == ["fourth"]
