from __future__ import annotations

from pathlib import Path

import pytest

from plugin.near import LOG
from plugin.standin import stand_in

DEVICE = """
from enum import IntFlag
from bellwire import Bar, Option, PciDevice
from bellwire.pytest import device, machine

class Status(IntFlag):
    DONE = 1

class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    most = Option(5)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x04, Status, access="w1c")
    count = mmio.reg(0x20)

    @count.read
    def read_count(self) -> int:
        self.log.debug("somebody counts")
        self.warn("this is a device's warning")
        return 7
"""
PLUGIN = ("-p", "no:bellwire", "-p", "bellwired.testing.plugin", "-p", "no:cacheprovider")
"""The plugin by its module: it is there even if this environment was installed before it had an entry point."""


class Trial:
    """Runs pytest on a test file, with machines that are near."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def __call__(self, text: str, *arguments: str) -> pytest.RunResult:
        self.pytester.makepyfile(test_it=DEVICE + text)
        return self.pytester.runpytest_inprocess(*PLUGIN, *arguments)

    @property
    def log(self) -> list[str]:
        """What was asked of the machines, in order."""
        log = Path(LOG)
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def trial(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # or hypothesis would be read again for each run
    stand_in(monkeypatch)
    driver = pytester.mkdir("driver")
    for name in ("copier", "core", "busy", "broken", "stuck", "waiting"):
        (driver / f"{name}.ko").touch()
    return Trial(pytester)
