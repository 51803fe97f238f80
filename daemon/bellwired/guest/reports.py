"""What Linux reports on its console when it has found a mistake: oopses, warnings, hangs, and what its checkers find.

A :class:`Watcher` reads the console's bytes as they come. The guest chooses them, so what it keeps is bounded.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

LONGEST_LINE = 1024  # bytes; the rest of a line is dropped
LONGEST_REPORT = 400  # lines
LONGEST_HEAD = 60  # lines before the stack; a report of lockdep has more
MOST_REPORTS = 50
"""Reports that are kept. Later ones are counted: the first one is the one to look at."""
BEFORE = 10  # lines between "cut here" and the line that says what has happened


class Kind(StrEnum):
    """What was reported."""

    OOPS = "oops"
    BUG = "BUG"
    WARNING = "WARNING"
    PANIC = "panic"
    HUNG_TASK = "hung task"
    SOFT_LOCKUP = "soft lockup"
    HARD_LOCKUP = "hard lockup"
    RCU_STALL = "RCU stall"
    LOCKDEP = "lockdep"
    KASAN = "KASAN"
    KFENCE = "KFENCE"
    KCSAN = "KCSAN"
    UBSAN = "UBSAN"
    INTERRUPT = "unhandled interrupt"
    LEAK = "memory leak"


@dataclass(frozen=True)
class Report:
    """``title`` is the line that says what has happened, and ``text`` all of the report, as it was printed."""

    kind: Kind
    title: str
    text: str


_LOCKDEP = (
    r"possible (?:circular|recursive|irq)|possible irq lock inversion|inconsistent lock state|suspicious RCU usage|"
    r"bad unlock balance|held lock freed|lock held when returning|nested lock was not taken|still has locks held|"
    r"\S+-safe -> \S+-unsafe lock order|Nested lock|bad contention|process .{0,64} still holds"
)
_STARTS: tuple[tuple[Kind, str], ...] = (
    (Kind.KASAN, r"BUG: KASAN: "),
    (Kind.KFENCE, r"BUG: KFENCE: "),
    (Kind.KCSAN, r"BUG: KCSAN: "),
    (Kind.UBSAN, r"UBSAN: "),
    (Kind.OOPS, r"BUG: (?:kernel NULL pointer|unable to handle|stack guard page|TASK stack guard|IRQ stack guard)"),
    (Kind.OOPS, r"(?:Oops|general protection fault|kernel BUG at|invalid opcode|divide error|int3|stack segment|"
                r"double fault)\b[,: ]"),
    (Kind.SOFT_LOCKUP, r"(?:NMI )?watchdog: BUG: soft lockup|BUG: soft lockup"),
    (Kind.HARD_LOCKUP, r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP"),
    (Kind.RCU_STALL, r"(?:rcu: )?INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stall"),
    (Kind.HUNG_TASK, r"INFO: task .{1,64} blocked (?:for more than|in I/O wait)"),
    (Kind.LOCKDEP, rf"(?:WARNING|BUG|INFO): (?:{_LOCKDEP}|trying to register non-static key)"),
    (Kind.PANIC, r"Kernel panic - not syncing"),
    (Kind.WARNING, r"WARNING: (?:CPU: \d+ PID: \d+ at|\S+:\d+ at|at) "),
    (Kind.BUG, r"BUG: |BUG \S+ \("),
    (Kind.INTERRUPT, r"irq \d+: nobody cared"),
    (Kind.LEAK, r"kmemleak: \d+ new suspected memory leaks"),
)  # fmt: skip
_START = re.compile("|".join(f"({pattern})" for _, pattern in _STARTS))
_STAMP = re.compile(r"(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
_CUT = re.compile(r"-+\[ cut here \]-+")
_END = re.compile(r"-+\[ end (?:trace|Kernel panic)")
_RULE = re.compile(r"={20,}$")
_TRACE = re.compile(r"Call Trace:|Backtrace:")
_STACK_END = re.compile(r"\s*</TASK>")
_SAME_CRASH = re.compile(r"(?:Oops|general protection fault|invalid opcode|int3|kernel BUG at)\b")
_GOES_ON = re.compile(
    r"\s|\?|</?\w+>|RIP:|Code:|[RE][A-Z0-9]{2}:|[CDEF]S:|CR\d:|DR\d:|PKRU:|Modules linked in:|---\[|Call Trace:|"
    r"CPU:|Hardware name:|Workqueue:|note:|handlers:|\[<|Disabling IRQ|Showing all locks|\d+ locks? held by|"
    r"Kernel Offset:|rcu: |Sending NMI|NMI backtrace|task:|={20,}$|\S+\+0x[0-9a-f]+/0x|$"
)
"""What may follow the stack of a report and still belongs to it."""
_UNTIL_RULE = frozenset({Kind.KASAN, Kind.KFENCE, Kind.KCSAN})
"""Reports that end with a line of equal signs, whatever comes before it."""
_ONE_LINE = frozenset({Kind.LEAK})
_LEAKED = re.compile(r"unreferenced object 0x[0-9a-f]+ \(size \d+\):")

Told = Callable[[Report], object]


HANGS = frozenset({Kind.HUNG_TASK, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.RCU_STALL})
"""Reports after which a command may never end."""


class Watcher:
    """Finds reports in what a guest's kernel prints.

    ``told`` is called once for each report, from the thread that feeds: when its stack has been printed, since the
    kernel may then print nothing for a long time, or else when it is complete. Some lines may still follow.
    """

    def __init__(self, told: Told | None = None) -> None:
        self._lock = threading.RLock()
        self.dropped = 0
        """Reports beyond :data:`MOST_REPORTS`."""
        self._told = told
        self._line = bytearray()
        self._found: list[Report] = []
        self._open = _Open()

    @property
    def reports(self) -> list[Report]:
        """All reports so far, the unfinished one too."""
        with self._lock:
            unfinished = self._open.report()
            return [*self._found, *([unfinished] if unfinished else [])]

    def feed(self, data: bytes) -> None:
        """Read more of the console; pieces may end anywhere."""
        *ended, rest = data.split(b"\n")
        with self._lock:
            for piece in ended:
                self._grow(piece)
                self._read(self._line.decode(errors="replace").rstrip("\r"))
                self._line.clear()
            self._grow(rest)

    def finish(self) -> list[Report]:
        """Nothing more will come: complete what is unfinished. All reports."""
        with self._lock:
            if self._line:
                self.feed(b"\n")
            self._close()
            return self.reports

    def _grow(self, piece: bytes) -> None:
        self._line += piece[: LONGEST_LINE - len(self._line)]

    def _read(self, line: str) -> None:
        stamp = _STAMP.match(line)
        said = line[stamp.end() :] if stamp else line
        if self._open.kind is None:
            self._begin(line, said)
        elif self._open.ended_by(said):
            self._close()
            self._begin(line, said)
        else:
            self._open.take(line, said)
            if self._open.complete:
                self._close()
            elif _STACK_END.match(said):
                self._tell()

    def _begin(self, line: str, said: str) -> None:
        """Between reports: take what may be the first line of one."""
        found = _START.match(said)
        if found and found.lastindex:
            self._open.name(_STARTS[found.lastindex - 1][0], said)
        elif _CUT.match(said) or _RULE.match(said):
            self._open = _Open()
        elif not self._open.waits:
            self._open = _Open()
            return
        self._open.take(line, said)
        if self._open.kind in _ONE_LINE:
            self._close()

    def _tell(self) -> None:
        report = self._open.report()
        if report and self._told and not self._open.told and len(self._found) < MOST_REPORTS:
            self._open.told = True
            self._told(report)

    def _close(self) -> None:
        self._tell()
        report, self._open = self._open.report(), _Open()
        if report is None:
            return
        if len(self._found) < MOST_REPORTS:
            self._found.append(report)
        else:
            self.dropped += 1


@dataclass
class _Open:
    """A report that is being printed. Without a kind, it is what came after "cut here"."""

    kind: Kind | None = None
    title: str = ""
    lines: list[str] = field(default_factory=list)
    traced: bool = False
    complete: bool = False
    told: bool = False

    @property
    def waits(self) -> bool:
        """Whether it may still become a report: the title follows a rule at once, and "cut here" soon."""
        return 0 < len(self.lines) <= (1 if _RULE.search(self.lines[0]) else BEFORE)

    def name(self, kind: Kind, title: str) -> None:
        """Say what it is."""
        self.kind, self.title = kind, title

    def ended_by(self, said: str) -> bool:
        """Whether a line is the first one behind the report."""
        if _CUT.match(said):
            return True
        if self.kind in _UNTIL_RULE:
            return False
        if _START.match(said) and not (self.kind is Kind.OOPS and not self.traced and _SAME_CRASH.match(said)):
            return True
        return self.traced and not _GOES_ON.match(said)

    def take(self, line: str, said: str) -> None:
        """Add a line, and see whether it is the last one."""
        self.lines.append(line)
        self.traced |= _TRACE.match(said) is not None
        if self.kind is not None:
            longest = LONGEST_REPORT if self.traced or self.kind is Kind.LOCKDEP else LONGEST_HEAD
            ruled = _RULE.match(said) is not None and len(self.lines) > 2
            self.complete = (
                len(self.lines) >= longest
                or _END.match(said) is not None
                or (ruled and (self.kind in _UNTIL_RULE or self.traced))
            )

    def report(self) -> Report | None:
        """The report so far."""
        return Report(self.kind, self.title, "\n".join(self.lines)) if self.kind is not None else None


def find_reports(data: bytes) -> list[Report]:
    """The reports in what a kernel has printed."""
    watcher = Watcher()
    watcher.feed(data)
    return watcher.finish()


def find_leaks(text: str, modules: Iterable[str] = ()) -> list[Report]:
    """The leaks in what /sys/kernel/debug/kmemleak holds. With ``modules``, those of memory that they allocated.

    One report is one object (Documentation/dev-tools/kmemleak.rst).
    """
    wanted = [f"[{module.replace('-', '_')}]" for module in modules]
    starts = [found.start() for found in _LEAKED.finditer(text)]
    objects = [text[start:end].rstrip() for start, end in itertools.pairwise([*starts, len(text)])]
    return [
        Report(Kind.LEAK, each.partition(":\n")[0], each[: LONGEST_REPORT * 100])
        for each in objects
        if not wanted or any(module in each for module in wanted)
    ][:MOST_REPORTS]
