"""The plugin for pytest: options, the fixture ``vm``, and what a failing test's report has of its machine.

pytest imports this module in every run of an environment that has Bellwire. So it imports nothing heavy: the SDK, the
guest and the rest are imported when the first test asks for a machine. ``-p no:bellwire`` turns it off.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
from _pytest._code.code import ExceptionRepr

from bellwired.testing import scenarios
from bellwired.testing.wanted import MARK, wanted_by

if TYPE_CHECKING:
    from bellwire.faults.scenario import Scenario
    from bellwired.testing.bench import Bench
    from bellwired.testing.running import Running
    from bellwired.testing.vm import Vm

REQUIRED = "BELLWIRE_REQUIRED"
TIMEOUT = 60.0  # seconds
TRACE = 200  # lines
_BENCH: pytest.StashKey[Bench] = pytest.StashKey()
_RUNNING: pytest.StashKey[Running] = pytest.StashKey()
_VM: pytest.StashKey[Vm] = pytest.StashKey()
_FAILED: pytest.StashKey[bool] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's options, in a group of their own."""
    group = parser.getgroup("bellwire", "drivers in a Linux guest (bellwire)")
    group.addoption(
        "--bellwire-required",
        action="store_true",
        help=f"fail tests for which no QEMU, kernel or compiler can be had, in place of skipping them (${REQUIRED}=1)",
    )
    group.addoption(
        "--bellwire-kernel",
        metavar="KERNEL",
        help="the kernel of all guests: a bzImage, a build tree, running, or debian",
    )
    group.addoption("--bellwire-append", metavar="WORDS", default="", help="more for the kernel's command line")
    group.addoption("--bellwire-fresh", action="store_true", help="boot for each test")
    group.addoption(
        "--bellwire-timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT,
        help="how long a command in a guest, or loading or removing a driver, may take (%(default)g)",
    )
    group.addoption(
        "--bellwire-trace",
        metavar="LINES",
        type=int,
        default=TRACE,
        help="lines of a device's trace in the report of a failing test (%(default)d); 0 traces nothing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, for ``--strict-markers``."""
    config.addinivalue_line(
        "markers", f"{MARK}(devices, module=...): a Linux guest with devices, as by machine() of bellwire.pytest"
    )
    config.addinivalue_line(
        "markers", f"{scenarios.MARK}(names): a test for each scenario of faults, as by scenarios() of bellwire.pytest"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each scenario that a mark names."""
    scenarios.spread(metafunc)


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Scenario:
    """The scenario of faults under which the test runs, one of those that its ``@scenarios`` names."""
    return scenarios.given(request)


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """The Linux guest that the test's ``@machine`` describes, with its devices plugged in and its driver loaded."""
    from bellwired.testing.bench import Bench

    item: pytest.Item = request.node
    wanted = wanted_by(item)
    bench = request.config.stash.get(_BENCH, None)
    if bench is None:
        bench = request.config.stash[_BENCH] = Bench(request.config, required=_required(request.config))
    try:
        running = item.stash[_RUNNING] = bench.take(item, wanted)
        running.begin(item.nodeid)
        if scenarios.names_of(item):
            running.put_in(request.getfixturevalue(scenarios.FIXTURE))
    except Exception as error:
        if _RUNNING in item.stash:
            item.stash[_RUNNING].spoiled = str(error)
        _explain(item, error)
        raise
    vm = item.stash[_VM] = bench.vm(running)
    yield vm
    try:
        running.take_out()
        running.end()
    except Exception as error:
        running.spoiled = running.spoiled or str(error)
        if not item.stash.get(_FAILED, False):
            raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test in which the guest's kernel reports a mistake has failed, whatever the test itself says.

    One that has passed, and in which no fault of its scenario has struck, is warned of.
    """
    try:
        result = yield
        if (running := item.stash.get(_RUNNING, None)) is not None:
            running.check()
        scenarios.check(item)
    except BaseException as error:
        _explain(item, error)
        raise
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the machine's sections to the report of a failing test, so that JUnit's XML has them, too."""
    report = yield
    running = item.stash.get(_RUNNING, None)
    found: Iterable[tuple[str, str]] = ()
    if report.failed and running is not None:
        from bellwired.testing.sections import sections

        item.stash[_FAILED] = True
        found = sections(item.stash.get(_VM, None), running, item.config.getoption("--bellwire-trace"))
    elif report.failed and call.excinfo is not None and (console := getattr(call.excinfo.value, "console", "")):
        found = [("the guest's console", console)]
    for title, text in found:
        if isinstance(report.longrepr, ExceptionRepr):  # JUnit's XML has all of it
            report.longrepr.addsection(title, text, "-")
        else:
            report.sections.append((title, text))
    return report


def _explain(item: pytest.Item, error: BaseException) -> None:
    """Tell the machine of an error, and have the error say what to do about it."""
    if (running := item.stash.get(_RUNNING, None)) is not None:
        running.failed(error)
    if hint := getattr(error, "hint", ""):
        error.add_note(hint)


def _required(config: pytest.Config) -> bool:
    return bool(config.getoption("--bellwire-required")) or os.environ.get(REQUIRED, "0") not in ("", "0")
