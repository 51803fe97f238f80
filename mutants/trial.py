"""pytest in a process of its own, forked from one that has it imported: with a mistake in one file, or measured."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib.machinery
import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

TESTS = ["tests/protocol", "tests/devices", "tests/nvme", "tests/virtio"]
NOTHING_RAN = "(none)"
QUICK = "not daemon and not guest and not kvm and not nested and not slow and not systemd"
OPTIONS = ["-q", "-p", "no:cacheprovider", "-m", QUICK, "--no-header", "--tb=line"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis has been imported by then
OPTIONS += ["-o", "python_files=test_*.py"]  # pytest would load a `self_test.py` of ours itself, without the mistake
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Reach:
    """Notes which lines each test runs, and how long it takes."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.seconds: dict[str, float] = {}
        self._measured = measured

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Every test is a context."""
        self._measured.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._measured.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up and call."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration


class Chosen:
    """Runs these tests, or all of a file that is named, in this order, and tells which one fails first."""

    def __init__(self, nodes: list[str]) -> None:
        self._order = {node: place for place, node in enumerate(nodes)}
        self.failed = ""
        self.seconds = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """A property that fails need not be made small."""
        plain = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", phases=plain, deadline=None, database=None, derandomize=True)
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drop the others."""
        places = [self._order.get(item.nodeid, self._order.get(item.nodeid.partition("::")[0])) for item in items]
        chosen = [(place, item) for place, item in zip(places, items, strict=True) if place is not None]
        items[:] = [item for _, item in sorted(chosen, key=lambda pair: pair[0])]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The first failure is the last."""
        if report.failed and not self.failed:
            self.failed, self.seconds = report.nodeid, report.duration

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported has failed too."""
        if report.failed and not self.failed:
            self.failed = report.nodeid


def measure(packages: list[str], into: Path, of: str) -> dict[str, Any]:
    """Lines of files, each with the tests that run it (by their places in ``tests``); and how long each takes.

    ``of`` says what was measured.
    """

    def run() -> None:
        measured = coverage.Coverage(data_file=None, config_file=False, source_pkgs=packages, check_preimported=True)
        reach = Reach(measured)
        measured.start()
        pytest.main([*OPTIONS, *TESTS], plugins=[reach])
        measured.stop()
        data = measured.get_data()
        tests = list(reach.seconds)
        number = {test: at for at, test in enumerate(tests)}
        files = {
            os.path.relpath(file): {
                str(line): [number[name] for name in names if name in number]
                for line, names in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        into.write_text(json.dumps({"of": of, "files": files, "tests": tests, "seconds": reach.seconds}))

    if _forked(run, 1800) != 0:
        raise SystemExit("mutants: the tests could not be measured: see build/mutants/output")
    found: dict[str, Any] = json.loads(into.read_text())
    return found


def attempt(file: str, tree: ast.Module | None, nodes: list[str], patience: float) -> tuple[str, float]:
    """Which test fails with ``tree`` as ``file``, and after how long; none: ''. Time that runs out is a failure."""
    told, tell = os.pipe()

    def run() -> None:
        if tree is not None:
            _replace(os.path.realpath(file), tree)
        chosen = Chosen(nodes)
        ended = pytest.main([*OPTIONS, "-x", *sorted({node.partition("::")[0] for node in nodes})], plugins=[chosen])
        if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
            chosen.failed = NOTHING_RAN
        elif ended != pytest.ExitCode.OK and not chosen.failed:
            chosen.failed = "(the tests cannot start)"
        os.write(tell, json.dumps([chosen.failed, chosen.seconds]).encode())

    ended = _forked(run, patience)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        said = pipe.read()
    if ended is None:
        return "(time ran out)", patience
    if not said:
        return "(the process died)", 0.0
    failed, seconds = json.loads(said)
    if failed == NOTHING_RAN:
        raise SystemExit(f"mutants: none of {len(nodes)} tests is there, {nodes[0]} for one: measure again (--measure)")
    return failed, seconds


def _replace(path: str, tree: ast.Module) -> None:
    """Whoever imports ``path`` gets ``tree``."""
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> Any:
        return compile(tree, path, "exec") if os.path.realpath(loader.path) == path else usual(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[assignment,method-assign]


def _forked(work: Callable[[], None], patience: float) -> int | None:
    """Status of a process that does ``work``; None when it had to be killed. Nothing that it started stays behind.

    It ends with this process, even if that is killed.
    """
    ours, pid = os.getpid(), os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != ours:
                os._exit(status)
            output = os.open("build/mutants/output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 nothing may get back to the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    handle, deadline = os.pidfd_open(pid), time.monotonic() + patience
    try:
        waiter = select.poll()
        waiter.register(handle, select.POLLIN)
        over = bool(waiter.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(handle)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if over else None


def fast_first(nodes: Iterable[str], seconds: dict[str, float], enough: float) -> list[str]:
    """The order in which a mistake is found soonest, until the tests would take ``enough`` seconds.

    The quickest test of each file comes first, then the second of each: tests of one file often do much the same.
    """
    turns: Counter[str] = Counter()
    order: list[tuple[int, float, str]] = []
    for node in sorted(nodes, key=lambda node: seconds[node]):
        file = node.partition("::")[0]
        order.append((turns[file], seconds[node], node))
        turns[file] += 1
    chosen: list[str] = []
    for _, _, node in sorted(order):
        enough -= seconds[node]
        if chosen and enough < 0:
            break
        chosen.append(node)
    return chosen
