"""A kernel's reports are noticed on a guest's console, and decoded to the lines of the module that caused them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bellwired.commands.boot import FAILED
from bellwired.guest.archive import ArchiveError
from bellwired.guest.build import build_modules
from bellwired.guest.errors import CommandTimeout, MachineError
from bellwired.guest.headers import tree_of
from bellwired.guest.machine import Machine
from bellwired.guest.plan import Plan
from bellwired.guest.qemus import inspect
from bellwired.guest.reports import Kind, Report
from bellwired.guest.toolbox import Toolbox
from daemon.commands import COMMAND

pytestmark = pytest.mark.guest

SOURCE = Path(__file__).parent / "broken"
IMPATIENT = """
echo 1 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/watchdog_thresh
echo 6 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
"""
"""A soft lockup is noticed after 2 to 4 seconds, unless a stall of RCU was before: that is noticed after 6. On a busy
host the processor that loops may stand still for some of the time."""
PATIENCE = 60.0  # seconds for a mistake that takes eight


class Seen(NamedTuple):
    """What a guest said of its mistakes."""

    reports: list[Report]
    console: str
    decode: Callable[[Report], str]

    def decoded(self, kind: Kind) -> str:
        """The first report of a kind."""
        return self.decode(next(report for report in self.reports if report.kind is kind))


def line(text: str) -> str:
    """Where the module does something, as a report names it."""
    lines = (SOURCE / "broken.c").read_text().splitlines()
    return f"(broken.c:{1 + next(number for number, each in enumerate(lines) if text in each)})"


@pytest.fixture(scope="module")
def seen(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One guest makes all mistakes, the last of which ends it."""
    folder = tmp_path_factory.mktemp("reports") / "broken"
    shutil.copytree(SOURCE, folder)
    try:
        tree_of(tools.kernel)
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no headers: {error}")
    (module,) = build_modules(folder, tools.kernel).modules
    qemu = inspect(tuple(tools.qemu), tools.qemu_environment, tuple(tools.virtiofsd))
    plan = Plan(tools.kernel, qemu, busybox=tools.busybox, cpus=2)
    with Machine.start(plan) as machine:
        assert machine.reports == []
        with pytest.raises(CommandTimeout, match=r"loading /\S+/broken\.ko has not ended after 2 s$"):
            machine.insert(module, "waits=1", timeout=2)
        machine.insert(module)
        machine.run(IMPATIENT, check=True)
        for mistake in ("warn", "hang", "loop"):
            machine.run(f"printf {mistake} >/proc/broken", check=True, timeout=PATIENCE)
        assert machine.run("printf null >/proc/broken", timeout=PATIENCE).status == 137
        with pytest.raises(MachineError):
            machine.run("echo c >/proc/sysrq-trigger", timeout=PATIENCE)
        return Seen(machine.reports, machine.console.text, machine.decoded)


HANG = """
printf warn >/proc/broken
echo 1 >/proc/sys/kernel/hung_task_timeout_secs
printf hang >/proc/broken
sleep 1000
"""


def test_bellwire_boot_fails_with_the_decoded_reports_and_waits_for_no_guest_that_hangs(
    seen: Seen, tmp_path: Path
) -> None:
    shutil.copytree(SOURCE, tmp_path / "broken")
    words = [*COMMAND, "boot", "--minimal", "--build", "broken", "--module", "broken/broken.ko", "--", "sh", "-c", HANG]
    done = subprocess.run(
        words, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == FAILED, done.stderr
    assert "\nmodule: " in f"\n{done.stderr}"
    assert "\nthe guest's kernel reports: WARNING: CPU: " in done.stderr
    assert line("WARN(1") in done.stderr
    assert line("\t\thang();") in done.stderr
    assert "The end of the guest's console:\n" in done.stderr
    assert "\nbellwire: the guest hangs: INFO: task sh:" in done.stderr


def test_each_mistake_is_noticed_once_and_in_its_order(seen: Seen) -> None:
    kinds = list(dict.fromkeys(report.kind for report in seen.reports))
    assert kinds[0] is Kind.WARNING
    assert kinds[1] is Kind.HUNG_TASK
    assert set(kinds[2:4]) == {Kind.SOFT_LOCKUP, Kind.RCU_STALL}
    assert kinds[4:] == [Kind.OOPS, Kind.PANIC]


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (Kind.WARNING, "WARNING: CPU: "),
        (Kind.HUNG_TASK, "INFO: task sh:"),
        (Kind.SOFT_LOCKUP, "watchdog: BUG: soft lockup - CPU#"),
        (Kind.RCU_STALL, "rcu: INFO: rcu_preempt "),
        (Kind.OOPS, "BUG: kernel NULL pointer dereference, address: 0000000000000000"),
        (Kind.PANIC, "Kernel panic - not syncing: sysrq triggered crash"),
    ],
)
def test_a_report_is_named_by_the_line_that_says_what_has_happened(seen: Seen, kind: Kind, title: str) -> None:
    assert next(report for report in seen.reports if report.kind is kind).title.startswith(title)


def test_a_warning_has_its_message_and_the_line_of_source(seen: Seen) -> None:
    text = seen.decoded(Kind.WARNING)
    assert "broken was asked to warn" in text
    assert line("WARN(1") in text
    assert line("\t\twarn();") in text


def test_an_oops_names_the_line_that_did_it_and_its_callers(seen: Seen) -> None:
    text = seen.decoded(Kind.OOPS)
    (instruction,) = (each for each in text.splitlines() if "RIP: 0010:" in each)
    assert instruction.endswith(f"[broken] {line('WRITE_ONCE(*nowhere')}")
    assert line("\t\tuse_null();") in text
    assert text.rstrip().endswith("---[ end trace 0000000000000000 ]---")


def test_a_hung_task_names_the_line_that_it_waits_in(seen: Seen) -> None:
    assert line("\t\thang();") in seen.decoded(Kind.HUNG_TASK)


@pytest.mark.parametrize("kind", [Kind.SOFT_LOCKUP, Kind.RCU_STALL])
def test_a_processor_that_is_stuck_names_the_loop(seen: Seen, kind: Kind) -> None:
    text = seen.decoded(kind)
    assert line("while (time_before") in text or line("cpu_relax();") in text
    assert line("\t\tloop();") in text


def test_the_kernels_own_functions_stay_as_they_are(seen: Seen) -> None:
    """Debian's kernel has no debug information at hand."""
    assert "ksys_write+0x" in seen.decoded(Kind.OOPS)


def test_a_report_is_whole_and_has_nothing_else_in_it(seen: Seen) -> None:
    for report in seen.reports:
        assert report.text in seen.console
        assert report.text.count("Call Trace:") == (0 if report.kind is Kind.PANIC else 1)
