"""What a failing test tells of its machine, and what makes a test fail."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from plugin.conftest import DEVICE, PLUGIN, Trial

pytestmark = pytest.mark.slow

FAILS = """
@machine(devices=[Copier], module="driver/copier.ko")
def test_before(vm):
    vm.device(Copier).read_bar(0, 0x20, 4)
    vm.machine.console.feed(b"a line of the test before\\n")

@machine(devices=[Copier], module="driver/copier.ko")
def test_it(vm):
    vm.machine.console.feed(b"copier 0000:00:01.0: no answer\\n")
    vm.device(Copier).read_bar(0, 0x20, 4)
    vm.device(Copier).status = Status.DONE
    vm.run("exit 3")
    assert not vm.device(Copier).status
"""
SECTIONS = [
    "*commands in the guest*",
    "exit 3: status 3, *",
    "*the guest's console*",
    "copier 0000:00:01.0: no answer",
    "*device copier0: registers*",
    "status = 0x1 (DONE)",
    "*device copier0: counters*",
    "*device copier0: trace*",
    "* somebody counts",
    "* this is a device's warning",
    "* hook    read_count() * ms",
]


def test_a_failing_tests_report_has_the_console_and_the_devices_trace(trial: Trial) -> None:
    result = trial(FAILS)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(SECTIONS)
    assert "a line of the test before" not in result.stdout.str()


def test_junits_xml_has_them_too(trial: Trial) -> None:
    trial(FAILS, "--junitxml=out.xml")
    cases = {case.get("name"): case for case in ET.parse(trial.pytester.path / "out.xml").iter("testcase")}
    failure = cases["test_it"].find("failure")
    assert failure is not None
    text = failure.text or ""
    for words in ("the guest's console", "no answer", "device copier0: trace", "hook    read_count()", "status = 0x1"):
        assert words in text
    assert list(cases["test_before"]) == []


def test_the_log_of_pytest_has_warnings_of_a_device_and_no_trace(trial: Trial) -> None:
    result = trial(FAILS)
    log = result.stdout.str().partition("Captured log call")[2]
    assert log.count("this is a device's warning") == 1
    assert "read_count()" not in log


def test_without_a_trace_the_report_has_the_devices_log(trial: Trial) -> None:
    result = trial(FAILS, "--bellwire-trace=0")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*device copier0: log*"])
    result.stdout.no_fnmatch_line("*hook    read_count()*")


def test_a_trace_is_cut_at_its_beginning(trial: Trial) -> None:
    result = trial(FAILS, "--bellwire-trace=1")
    result.stdout.fnmatch_lines(["(* lines before these)", "* hook    read_count() * ms"])
    result.stdout.no_fnmatch_line("*somebody counts")


def test_an_oops_fails_the_test_in_which_it_comes_and_the_next_has_a_new_machine(trial: Trial) -> None:
    result = trial("""
pytestmark = machine(devices=[Copier], module="driver/copier.ko")
def test_oops(vm): vm.run(": oops")
def test_next(vm): pass
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *GuestReport: the guest's kernel says: BUG: kernel NULL pointer dereference, address*",
            "*the guest's kernel: oops*",
            "*BUG: kernel NULL pointer*",
        ]
    )
    assert [line for line in trial.log if "boot" in line or "end" in line] == [
        *("1: boot copier0", "1: end"),
        *("2: boot copier0", "2: end"),
    ]


def test_memory_that_the_driver_has_lost_fails_the_test(trial: Trial) -> None:
    result = trial("""
from pathlib import Path

pytestmark = machine(devices=[Copier], module="driver/copier.ko")
def test_lose(vm): Path("leaks").touch()
def test_next(vm): Path("leaks").unlink()
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E *GuestReport: the guest's kernel says: unreferenced object 0x*", "*the guest's kernel: memory leak*"]
    )


def test_a_report_is_shown_beside_the_tests_own_error(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier])
def test_oops(vm):
    vm.run(": oops")
    assert vm.reports == []
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *assert *Report*", "*the guest's kernel: oops*"])


def test_a_hook_that_fails_fails_the_test(trial: Trial) -> None:
    result = trial("""
from vfio_user import Client

class Wrong(PciDevice, vendor=0x1234, device=0x11F3, class_code=0x088000):
    mmio = Bar(0, size=4096)
    word = mmio.reg(0)
    @word.write
    def write_word(self, value: int) -> None:
        raise KeyError(value)

pytestmark = machine(devices=[Wrong])
def test_it(vm):
    with Client.connect(vm._running.devices[0].serving.path) as client:
        client.write(0, 0, bytes(4), posted=True)
def test_next(vm): pass
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *DeviceMistake: a hook of wrong0 has failed: its log says where", "*KeyError: 0*"])


def test_a_command_that_does_not_end_fails_its_test_and_the_next_has_a_new_machine(trial: Trial) -> None:
    result = trial(
        """
pytestmark = machine(devices=[Copier])
def test_slow(vm): vm.run("sleep 30")
def test_own(vm): vm.run("sleep 30", timeout=0.02)
def test_next(vm): pass
""",
        "--bellwire-timeout=0.01",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["E *CommandTimeout: sleep 30 did not end in 0.01 s", "E *did not end in 0.02 s"])
    assert [line for line in trial.log if "boot" in line] == [f"{n}: boot copier0" for n in (1, 2, 3)]


def test_after_a_guest_that_has_ended_the_next_test_has_a_new_machine(trial: Trial) -> None:
    result = trial("""
pytestmark = machine(devices=[Copier], module="driver/copier.ko")
def test_off(vm): vm.console.end()
def test_next(vm): pass
""")
    result.assert_outcomes(passed=2)
    assert [line for line in trial.log if "boot" in line] == ["1: boot copier0", "2: boot copier0"]


def test_a_command_that_fails_is_told_with_what_it_has_written(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier])
def test_it(vm): vm.run("echo no such queue >&2; exit 4", check=True)
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *CommandFailed: *status 4: no such queue*"])


def test_a_driver_that_cannot_be_removed_is_an_error_of_its_test(trial: Trial) -> None:
    result = trial("""
pytestmark = machine(devices=[Copier], module="driver/busy.ko")
def test_one(vm): pass
def test_two(vm): assert False
""")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_one*", "E *rmmod: busy is in use"])
    assert "2: boot copier0" in trial.log


def test_a_driver_that_cannot_be_loaded_is_an_error_with_the_console(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier], module="driver/broken.ko")
def test_it(vm): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *insmod: broken.ko: Invalid module format", "*the guest's console*"])


def test_a_device_that_hangs_does_not_hang_the_report(trial: Trial) -> None:
    result = trial("""
import threading
class Stuck(PciDevice, vendor=0x1234, device=0x11F2, class_code=0x088000):
    gate = None
    mmio = Bar(0, size=4096)
    word = mmio.reg(0)
    @word.read
    def read_word(self) -> int:
        BEGUN.set()
        GATE.wait(30)
        return 0

BEGUN, GATE = threading.Event(), threading.Event()

@machine(devices=[Stuck])
def test_it(vm, request):
    import bellwired.testing.sections as sections
    sections.PATIENCE = 0.05
    placed = vm._running.devices[0]
    reader = threading.Thread(target=placed.serving.call, args=(placed.serving.device.read_bar, 0, 0, 4))
    reader.start()
    request.addfinalizer(lambda: (GATE.set(), reader.join()))
    assert BEGUN.wait(30)
    assert False
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*device stuck0: registers*", "stuck has been busy for 0.05 s, in *wait*"])


@pytest.mark.slow  # it starts workers
def test_a_worker_of_xdist_has_a_machine_of_its_own_and_sends_the_whole_report(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.pytester.makepyfile(test_it=DEVICE + FAILS)
    root = Path(__file__).parents[2]
    words = [*PLUGIN, "-p", "xdist", "-p", "plugin.standin", "-n", "2", "--dist", "each", "--junitxml=out.xml"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root / "tests"), str(root)]))
    result = trial.pytester.runpytest_subprocess(*words)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(SECTIONS)
    assert (trial.pytester.path / "out.xml").read_text().count("hook    read_count()") == 2
    assert trial.log.count("1: boot copier0") == 2
