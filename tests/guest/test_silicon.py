"""PCI as silicon has it, seen by Linux in a stock QEMU: many functions and vectors, a large BAR, a ROM, hot-plug.

All tests look at one boot: what the guest has printed, part by part. One serial port of the guest is a conversation:
the guest says how far it is, and waits until the host has plugged, pulled or killed something.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import silicon
from attached import Device, running
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from comings import SLOT, TALK, come_and_go, slot
from linux import Guest, Outcome
from machine import NATIVE_HOT_PLUG

pytestmark = pytest.mark.guest

COMES = f"cat {SLOT}/*/*/tty/ttyS2/type >/dev/null 2>&1"
"""Linux names a driver in sysfs before it probes the device. This file of the port can be read when that is done."""

SCRIPT = f"""{TALK}
cd /sys/bus/pci/devices

say ready
await "{COMES}"
part plugged
readlink {SLOT}/driver
echo first >/dev/ttyS2
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

await "{COMES}"
echo second >/dev/ttyS2
say again
part dead
xxd -l 4 -p {SLOT}/config
echo third 2>&1 >/dev/ttyS2
echo $?
echo 0 >/sys/bus/pci/slots/1/power
await "[ ! -e {SLOT} ]"
say pulled
await "{COMES}"
part back
echo fourth >/dev/ttyS2
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


@pytest.fixture(scope="module")
def told(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("silicon")
    with ExitStack() as stack:

        def port(number: int) -> subprocess.Popen[bytes]:
            device = Device("serial", {"backend": f"file:{folder}/text{number}"})
            return stack.enter_context(running(device, folder / f"port{number}"))

        stack.enter_context(running(Device(silicon.__file__), folder / "card"))
        first, _ = port(1), port(2)
        card = [
            Plugged(folder / f"card/device.{n}", properties={"addr": f"10.{n}", "multifunction": True}) for n in (0, 1)
        ]
        guest = Guest(tools, folder)
        with ThreadPoolExecutor(1) as visitor:
            visited = visitor.submit(come_and_go, folder, folder / "port1/device", first, folder / "port2/device")
            outcome = guest.run(SCRIPT, card, board=NATIVE_HOT_PLUG, arguments=slot(folder), timeout=120)
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
