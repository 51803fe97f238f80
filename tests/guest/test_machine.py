"""The machine that ``bellwire boot`` and the pytest plugin boot: commands, files and devices in one Linux guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attached import Device, serving
from bellwired.guest.errors import CommandFailed, CommandTimeout, MachineError
from bellwired.guest.machine import Finished, Machine
from bellwired.guest.plan import HOST, Plan, Plugged, Share
from bellwired.guest.qemus import inspect
from bellwired.guest.reports import Kind
from bellwired.guest.toolbox import Toolbox

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the guest may write to."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def machine(tools: Toolbox, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With the host's root, a shared folder, two devices, and a module of the kernel's own."""
    (folder / "greeting").write_text("from the host\n")
    served = tmp_path_factory.mktemp("served")
    qemu = inspect(tuple(tools.qemu), tools.qemu_environment, tuple(tools.virtiofsd))
    with serving(Device("edu"), served / "edu") as edu, serving(Device("bell"), served / "bell") as bell:
        devices = [Plugged(each.tap.path, each.device.name) for each in (edu, bell)]
        shares = [Share(folder, str(folder), writable=True)]
        plan = Plan(
            tools.kernel, qemu, devices, root=HOST, shares=shares, modules=["uio_pci_generic"], folder=str(folder)
        )
        with Machine.start(plan) as machine:
            yield machine


def test_a_command_has_a_status_and_its_streams_come_apart(machine: Machine) -> None:
    done = machine.run("cat; echo problem >&2; exit 3", input=b"input")
    assert done == Finished(3, None, b"input", b"problem\n")


def test_a_command_that_a_signal_ends_says_which(machine: Machine) -> None:
    assert machine.run("kill -9 $$") == Finished(137, 9, b"", b"")


def test_a_command_that_is_checked_raises_with_what_it_said(machine: Machine) -> None:
    with pytest.raises(CommandFailed, match=r"ended with status 2:\nno such thing"):
        machine.run("echo no such thing >&2; exit 2", check=True)


def test_a_command_that_takes_too_long_is_killed(machine: Machine) -> None:
    with pytest.raises(CommandTimeout, match="has not ended after 1 s"):
        machine.run("sleep 1000 & wait", timeout=1)
    machine.run('while [ "$(pgrep sleep || pidof sleep)" ]; do :; done', check=True, timeout=60)  # its child, too


def test_much_output_comes_whole(machine: Machine) -> None:
    assert machine.run("head -c 3000000 /dev/zero").stdout == bytes(3_000_000)


def test_commands_run_at_the_same_time(machine: Machine, folder: Path) -> None:
    os.mkfifo(folder / "fifo")  # a pipe of the guest's own: the two ends meet there
    waiting = threading.Thread(target=machine.run, args=("cat fifo >heard",), kwargs={"timeout": 60})
    waiting.start()
    machine.run("echo hello >fifo", check=True, timeout=60)
    waiting.join()
    assert (folder / "heard").read_text() == "hello\n"


def test_commands_start_in_the_shared_folder_and_write_there(machine: Machine, folder: Path) -> None:
    machine.run("cat greeting >answer", check=True)
    assert (folder / "answer").read_text() == "from the host\n"


def test_what_the_guest_writes_elsewhere_stays_in_the_guest(machine: Machine) -> None:
    path = Path("/usr/written-by-a-guest")
    machine.run(f"echo content >{path} && test -s {path}", check=True)
    assert not path.exists()


def test_the_devices_are_at_the_first_places_in_their_order(machine: Machine) -> None:
    look = "cd /sys/bus/pci/devices; cat 0000:00:01.0/device 0000:00:02.0/device"
    assert machine.run(look, check=True).stdout == b"0x11e8\n0xbe11\n"


def test_a_module_of_the_kernels_own_is_loaded(machine: Machine) -> None:
    assert machine.run("grep -c ^uio_pci_generic /proc/modules").stdout == b"1\n"


def test_a_file_that_is_no_module_is_refused_with_the_kernels_reason(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bad.ko").write_bytes(b"no module")
    with pytest.raises(MachineError, match=r"bad\.ko: cannot be loaded: Exec format error"):
        machine.insert(tmp_path / "bad.ko")


def test_what_the_kernel_prints_is_on_the_console_alone(machine: Machine) -> None:
    machine.run("echo '<4>a word to the console' >/dev/kmsg", check=True)
    assert machine.console.wait_for(b"a word to the console", 30)
    assert "Linux version 6" not in machine.console.tail(3)


def test_after_a_reboot_it_has_its_devices_folders_and_modules_and_nothing_else(machine: Machine, folder: Path) -> None:
    machine.run("echo kept >before; echo lost >/tmp/lost; echo lost >/usr/lost", check=True)
    machine.remove("uio_pci_generic")
    machine.reboot()
    assert machine.run("cat before; ls /tmp/lost /usr/lost 2>/dev/null").stdout == b"kept\n"
    test_the_devices_are_at_the_first_places_in_their_order(machine)
    test_a_module_of_the_kernels_own_is_loaded(machine)
    assert machine.console.text.count("Linux version 6") == 2
    assert machine.reports == []


def test_the_error_of_a_guest_that_ends_has_the_consoles_tail(machine: Machine) -> None:
    """The last one: it ends the guest."""
    with pytest.raises(MachineError, match="the guest has ended") as caught:
        machine.run("echo c >/proc/sysrq-trigger", timeout=60)
    assert "write_sysrq_trigger" in machine.console.text
    assert caught.value.console == machine.console.tail()
    assert [report.kind for report in machine.reports] == [Kind.PANIC]
    with pytest.raises(MachineError, match="the guest has ended"):
        machine.run("true")
