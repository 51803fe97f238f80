"""What a kernel reports on its console is found, whole and named, whatever else the guest prints."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwired.guest.reports import (
    LONGEST_LINE,
    LONGEST_REPORT,
    MOST_REPORTS,
    Kind,
    Report,
    Watcher,
    find_leaks,
    find_reports,
)

CONSOLES = Path(__file__).parent / "consoles"
"""What real kernels have printed: tests/guest/broken made mistakes in them."""
TITLES = {
    "BUG: KASAN: slab-use-after-free in copier_write+0x10/0x20 [copier]": Kind.KASAN,
    "BUG: KFENCE: use-after-free read in copier_write+0x10/0x20": Kind.KFENCE,
    "BUG: KCSAN: data-race in one / other": Kind.KCSAN,
    "UBSAN: array-index-out-of-bounds in copier.c:12:3": Kind.UBSAN,
    "BUG: unable to handle page fault for address: ffffc90000400000": Kind.OOPS,
    "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP": Kind.OOPS,
    "general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP": Kind.OOPS,
    "kernel BUG at copier.c:12!": Kind.OOPS,
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:68]": Kind.SOFT_LOCKUP,
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0": Kind.HARD_LOCKUP,
    "watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1": Kind.HARD_LOCKUP,
    "rcu: INFO: rcu_sched self-detected stall on CPU": Kind.RCU_STALL,
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:": Kind.RCU_STALL,
    "INFO: task kworker/0:1:12 blocked for more than 120 seconds.": Kind.HUNG_TASK,
    "WARNING: possible circular locking dependency detected": Kind.LOCKDEP,
    "WARNING: possible recursive locking detected": Kind.LOCKDEP,
    "WARNING: inconsistent lock state": Kind.LOCKDEP,
    "WARNING: suspicious RCU usage": Kind.LOCKDEP,
    "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected": Kind.LOCKDEP,
    "INFO: trying to register non-static key.": Kind.LOCKDEP,
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100": Kind.PANIC,
    "WARNING: CPU: 0 PID: 1 at copier.c:12 copier_write+0x10/0x20": Kind.WARNING,
    "WARNING: copier.c:12 at copier_write+0x10/0x20, CPU#0: sh/68": Kind.WARNING,
    "BUG: sleeping function called from invalid context at mm/slab.c:1": Kind.BUG,
    "BUG: scheduling while atomic: sh/68/0x00000002": Kind.BUG,
    "BUG kmalloc-64 (Not tainted): Redzone overwritten": Kind.BUG,
    'irq 11: nobody cared (try booting with the "irqpoll" option)': Kind.INTERRUPT,
    "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)": Kind.LEAK,
}
REAL = {
    "linux-6.12": [
        Kind.WARNING,
        Kind.HUNG_TASK,
        Kind.HUNG_TASK,
        Kind.SOFT_LOCKUP,
        Kind.RCU_STALL,
        Kind.OOPS,
        Kind.PANIC,
    ],
}
HARMLESS = [
    "copier: BUG: is what this driver says of itself",
    "copier: WARNING: CPU: 0 PID: 1 at",
    "WARNING: the disk is nearly full",
    "Command line: oops=panic",
    "rcu: INFO: nothing is wrong",
    "INFO: task finished",
]
STACK = "Call Trace:\n <TASK>\n copier_write+0x10/0x20 [copier]\n </TASK>\n"
LINES = st.sampled_from(
    [
        *TITLES,
        *HARMLESS,
        "------------[ cut here ]------------",
        "---[ end trace 0000000000000000 ]---",
        "=" * 40,
        "Call Trace:",
        " <TASK>",
        "RIP: 0010:copier_write+0x10/0x20",
        "",
    ]
)


def stamped(text: str) -> bytes:
    return "".join(f"[   12.345678] {line}\n" for line in text.splitlines()).encode()


@pytest.mark.parametrize(("title", "kind"), TITLES.items(), ids=str)
def test_a_report_is_known_by_its_title(title: str, kind: Kind) -> None:
    (report,) = find_reports(stamped(title))
    assert (report.kind, report.title) == (kind, title)


@pytest.mark.parametrize(
    "stamp",
    ["", "[    0.000001] ", "[12345.678901] ", "[    1.2][    T1] ", "[    1.2][  C1] ", "<4>[    1.2] "],
)
def test_the_kernels_stamps_do_not_matter(stamp: str) -> None:
    (report,) = find_reports(f"{stamp}kernel BUG at copier.c:12!\r\n".encode())
    assert (report.title, report.text) == ("kernel BUG at copier.c:12!", f"{stamp}kernel BUG at copier.c:12!")


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_report_is_none(line: str) -> None:
    assert find_reports(stamped(line)) == []


def test_a_report_ends_with_its_stack() -> None:
    text = f"BUG: scheduling while atomic: sh/68/0x00000002\n{STACK}"
    (report,) = find_reports(stamped(f"{text}copier: all is well\n"))
    assert report.text.encode() + b"\n" == stamped(text)


def test_a_warnings_message_before_its_title_belongs_to_it() -> None:
    text = (
        "------------[ cut here ]------------\n"
        "refcount_t: underflow\n"
        "WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 x\n"
        f"{STACK}---[ end trace 0 ]---\n"
    )
    (report,) = find_reports(stamped(f"before\n{text}after\n"))
    assert report.text.encode() + b"\n" == stamped(text)


def test_an_oops_is_one_report_from_its_first_line_to_its_last() -> None:
    text = (
        "BUG: kernel NULL pointer dereference, address: 0\n"
        "Oops: 0002 [#1] PREEMPT SMP\n"
        f"{STACK}Modules linked in: copier\n"
        "CR2: 0\n"
        "---[ end trace 0 ]---\n"
    )
    (report,) = find_reports(stamped(f"{text}RIP: 0010:copier_write+0x10/0x20\n"))
    assert (report.kind, report.text.encode() + b"\n") == (Kind.OOPS, stamped(text))


def test_a_panic_after_an_oops_is_a_report_of_its_own() -> None:
    text = (
        "kernel BUG at copier.c:12!\n"
        "Oops: invalid opcode: 0000 [#1]\n"
        f"{STACK}---[ end trace 0 ]---\n"
        "Kernel panic - not syncing: Fatal exception\n"
    )
    assert [report.kind for report in find_reports(stamped(text))] == [Kind.OOPS, Kind.PANIC]


def test_a_kasan_report_goes_on_to_its_rule() -> None:
    rule = "=" * 66
    text = (
        f"{rule}\n"
        "BUG: KASAN: slab-use-after-free in copier_write\n"
        f"{STACK}\n"
        "Allocated by task 68:\n"
        " kasan_save_stack+0x1/0x2\n"
        "The buggy address belongs to the object at 0\n"
        f"{rule}\n"
    )
    (report,) = find_reports(stamped(f"{text}Disabling lock debugging due to kernel taint\n"))
    assert report.text.encode() + b"\n" == stamped(text)


@pytest.mark.parametrize(("console", "kinds"), REAL.items())
def test_what_a_real_kernel_has_reported_is_found(console: str, kinds: list[Kind]) -> None:
    data = (CONSOLES / console).read_bytes()
    reports = find_reports(data)
    assert [report.kind for report in reports] == kinds
    assert all(report.text.encode() in data.replace(b"\r", b"") for report in reports)


def test_an_unfinished_report_is_seen_at_once() -> None:
    watcher = Watcher()
    watcher.feed(b"kernel BUG at copier.c:12!\n")
    assert [report.kind for report in watcher.reports] == [Kind.OOPS]


def test_a_report_is_told_when_its_stack_has_been_printed() -> None:
    """After a hang, the kernel may print nothing more."""
    told: list[Report] = []
    watcher = Watcher(told.append)
    watcher.feed(stamped(f"INFO: task sh:1 blocked for more than 1 seconds.\n{STACK}"))
    assert told == watcher.reports
    watcher.feed(stamped("Showing all locks held in the system:\nnothing else"))
    assert told == [Report(Kind.HUNG_TASK, told[0].title, told[0].text)]
    assert "Showing all locks" in watcher.reports[0].text


def test_each_report_is_told_once() -> None:
    told: list[Report] = []
    watcher = Watcher(told.append)
    watcher.feed(stamped("kernel BUG at copier.c:12!\nCall Trace:\n"))
    assert told == []
    watcher.feed(b"---[ end trace 0 ]---\n")
    assert told == watcher.reports
    watcher.feed(b"kernel BUG at other.c:12!")
    assert watcher.finish() == told
    assert len(told) == 2


@settings(deadline=None)
@given(st.binary(max_size=4000), st.lists(st.integers(0, 4000), max_size=8))
def test_any_bytes_are_read_the_same_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    watcher = Watcher()
    places = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(places):
        watcher.feed(data[start:end])
    assert watcher.finish() == find_reports(data)


@settings(deadline=None)
@given(st.lists(LINES, max_size=120), st.integers(1, 200))
def test_any_lines_of_a_kernel_are_read_the_same_in_any_pieces(lines: list[str], size: int) -> None:
    data = stamped("\n".join(lines))
    watcher = Watcher()
    for start in range(0, len(data), size):
        watcher.feed(data[start : start + size])
    reports = watcher.finish()
    assert reports == find_reports(data)
    assert all(len(report.text.splitlines()) <= LONGEST_REPORT for report in reports)


@settings(max_examples=10, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_a_guest_that_never_stops_fills_no_memory(lines: list[str]) -> None:
    watcher = Watcher()
    data = stamped("\n".join(lines))
    for _ in range(300):
        watcher.feed(data)
    assert len(watcher.finish()) <= MOST_REPORTS
    assert sum(len(report.text) for report in watcher.reports) <= MOST_REPORTS * LONGEST_REPORT * 100


def test_a_line_without_an_end_fills_no_memory() -> None:
    watcher = Watcher()
    watcher.feed(b"kernel BUG at ")
    for _ in range(1000):
        watcher.feed(b"x" * 10_000)
    (report,) = watcher.finish()
    assert len(report.text) == LONGEST_LINE


def test_reports_beyond_the_limit_are_counted() -> None:
    watcher = Watcher()
    watcher.feed(stamped("kmemleak: 3 new suspected memory leaks\n") * (MOST_REPORTS + 7))
    assert (len(watcher.finish()), watcher.dropped) == (MOST_REPORTS, 7)


LEAKS = """\
unreferenced object 0xffff888003a5d300 (size 104):
  comm "sh", pid 68, jiffies 4294896000 (age 8.1s)
  backtrace:
    [<00000000e3a>] lose+0x1a/0x30 [broken]
unreferenced object 0xffff888003a5d400 (size 64):
  comm "swapper/0", pid 1, jiffies 4294890000 (age 20.0s)
  backtrace:
    [<00000000e3b>] do_one_initcall+0x1a/0x30
"""


def test_a_leak_is_one_object() -> None:
    assert [report.title for report in find_leaks(LEAKS)] == [
        "unreferenced object 0xffff888003a5d300 (size 104)",
        "unreferenced object 0xffff888003a5d400 (size 64)",
    ]


def test_the_leaks_of_a_module_are_those_with_it_in_their_stack() -> None:
    (report,) = find_leaks(LEAKS, ["broken"])
    assert report.text == "".join(LEAKS.splitlines(keepends=True)[:4]).rstrip()
    assert find_leaks(LEAKS, ["other-module"]) == []


@settings(deadline=None)
@given(st.text(max_size=500) | st.lists(st.sampled_from(LEAKS.splitlines()), max_size=50).map("\n".join))
def test_any_text_of_kmemleak_is_read(text: str) -> None:
    assert len(find_leaks(text)) == min(text.count("unreferenced object 0x"), MOST_REPORTS)
