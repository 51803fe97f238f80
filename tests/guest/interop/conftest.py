"""Each test has a row, by the fixture ``row``. ``make interop`` names the page in INTEROP_PAGE: it is written then."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path

import pytest

from bellwired.guest.archive import ArchiveError
from interop.fetched import Firmware, fetch_firmware
from interop.page import Row, render, title

HERE = Path(__file__).parent
PAGE = "INTEROP_PAGE"
LONGEST = 160  # characters of the reason why a row fails
_ROWS: dict[str, Row] = {}
_LEFT_OUT: list[str] = []


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """The test's row: it tells what was seen, and against what."""
    return _ROWS[request.node.nodeid]


@pytest.fixture(scope="session")
def firmware() -> Firmware:
    try:
        return fetch_firmware()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no firmware could be fetched: {error}")


def pytest_deselected(items: list[pytest.Item]) -> None:
    """A page of some rows alone would hide the others."""
    _LEFT_OUT.extend(item.nodeid for item in items if item.path.is_relative_to(HERE))


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        if item.path.is_relative_to(HERE) and isinstance(item, pytest.Function):
            section = (item.module.__doc__ or "").partition("\n")[0].rstrip(".")
            _ROWS[item.nodeid] = Row(section, title(item.name, item.function.__doc__))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read has rows that are not known: it is one itself."""
    if report.failed:
        _ROWS[report.nodeid] = Row("Tests that cannot be read", report.nodeid, works=False, why=str(report.longrepr))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row = _ROWS.get(report.nodeid)
    if row is None:
        return
    row.seconds += report.duration
    if report.skipped:
        row.why = _reason(report)
    elif report.failed:
        row.works, row.why = False, _reason(report)
    elif report.when == "call":
        row.works = True


def _reason(report: pytest.TestReport) -> str:
    """In one line, cut where it is long: pytest has said all of it."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    reason = (crash.message if crash else str(report.longrepr)).strip().partition("\n")[0]
    return reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."


def pytest_sessionfinish() -> None:
    """Write the page, also when rows have failed: it says so."""
    path = os.environ.get(PAGE)
    if not path or not _ROWS:
        return
    page = Path(path)
    if _LEFT_OUT:
        page = Path("build") / page.name  # the rows of a part of the tests are no page
        page.parent.mkdir(exist_ok=True)
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    page.write_text(render(list(_ROWS.values()), f"Run on {date.today():%-d %B %Y} ({machine})."))
