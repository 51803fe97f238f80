"""What the box of ``bellwire run`` lets a device of the user's own do."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.commands import bellwire, ended, line, started

pytestmark = pytest.mark.daemon

SPOKEN = """
from pathlib import Path

from bellwire import Bar, Option, PciDevice
from bellwire.stream import open_stream


class Spoken(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "A device with a stream."
    backend = Option("null")
    mmio = Bar(0, size=4096)

    def setup(self) -> None:
        if self.backend == "elsewhere":
            Path("/var/tmp/elsewhere").write_text("no")
        self.stream = open_stream(self.backend)
"""


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The device's file, beside which its commands run."""
    file = tmp_path / "spoken.py"
    file.write_text(SPOKEN)
    with contextlib.chdir(tmp_path):
        yield file


@pytest.mark.parametrize("stream", ["pty", "pty:{}/line", "unix:{}/line", "file:{}/line", "null"])
def test_a_device_of_the_users_own_opens_the_stream_that_an_option_names(spoken: Path, stream: str) -> None:
    backend = f"backend={stream.format(spoken.parent)}"
    with started("run", "./spoken.py", "--socket-path", "dut.sock", "-o", backend) as process:
        assert line(process)
        assert os.path.lexists(spoken.parent / "line") == (":" in stream)
        ended(process, signal.SIGTERM)


def test_what_the_box_refuses_is_said_with_the_line_and_a_hint(spoken: Path) -> None:
    done = bellwire("run", "./spoken.py", "--socket-path", "dut.sock", "-o", "backend=elsewhere")
    assert done.returncode == 1
    assert "Spoken.setup failed at " in done.stderr
    assert "spoken.py:15: PermissionError" in done.stderr
    assert "its box refuses" in done.stderr
    assert "--no-sandbox" in done.stderr
