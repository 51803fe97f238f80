"""``bellwire run --record`` and ``bellwire replay``, as users meet them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellwire.recording import BadRecording, Recorded
from bellwire.recording.format import head
from daemon.commands import PATIENCE, bellwire, line, started
from vfio_user import Client

pytestmark = pytest.mark.daemon

MINE = """
from bellwire import Bar, Option, PciDevice


class Mine(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "Doubles."
    factor = Option(2)
    mmio = Bar(0, size=4096)
    number = mmio.reg(0x0)

    @number.write
    def double(self, value: int) -> None:
        self.number = self.factor * value
"""


def recorded(folder: Path, device: str, *options: str, number: signal.Signals = signal.SIGTERM) -> Path:
    """The recording of a guest that writes 21 to the first register, and reads it."""
    path, socket = folder / "it.bwrec", folder / "s"
    (folder / "run").mkdir(mode=0o755)
    words = ["--socket-path", str(socket), "--runtime-dir", str(folder / "run"), "--record", str(path), *options]
    with started("run", device, *words) as process:
        line(process)
        with Client.connect(socket, timeout=PATIENCE) as client:
            client.write(0, 0, (21).to_bytes(4, "little"))
            client.read(0, 0, 4)
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_replay_is_identical_and_a_changed_device_differs(mine: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, str(mine), "-o", "factor=3")
    done = bellwire("replay", str(path), str(mine))
    assert (done.returncode, done.stdout.count("identical"), done.stderr) == (0, 1, "")
    mine.write_text(MINE.replace("* value", "* value + 1"))
    done = bellwire("replay", str(path), str(mine), "--json")
    (found,) = json.loads(done.stdout)["differences"]
    assert done.returncode == 1
    assert (found["what"], found["expected"], found["got"]) == ("read of number (BAR0+0x0)", "0x0000003f", "0x00000040")
    other = bellwire("replay", str(path), str(mine), "-o", "factor=5")
    assert f"event {found['event']}: read of number (BAR0+0x0): expected 0x0000003f, got 0x0000006a" in other.stdout


def test_the_recording_of_a_killed_device_can_be_replayed(mine: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, str(mine), number=signal.SIGKILL)
    done = bellwire("replay", str(path), str(mine), "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["complete"], outcome["differences"]) == (0, False, [])
    assert outcome["inputs"] >= 2  # the write and the read


def test_to_test_writes_a_test_that_passes_until_the_device_changes(mine: Path, tmp_path: Path) -> None:
    path, test = recorded(tmp_path, str(mine)), tmp_path / "test_it.py"
    assert bellwire("replay", str(path), str(mine), "--to-test", str(test)).returncode == 0

    def tested() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    assert "1 passed" in tested().stdout
    mine.write_text(MINE.replace("* value", "- value"))
    assert "expected 0x0000002a, got 0xffffffed" in tested().stdout


def test_a_recorded_path_is_not_used_again(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    path = recorded(tmp_path, "nvme", "-o", f"image={image}")
    done = bellwire("replay", str(path))
    assert done.returncode == 1
    assert f"it was recorded with image={image}, and a replay may write to it" in done.stderr
    copy = tmp_path / "copy.img"
    copy.write_bytes(image.read_bytes())
    assert "identical" in bellwire("replay", str(path), "-o", f"image={copy}", "-o", "serial=BELL").stdout


def test_a_file_of_somebody_names_no_code_to_run(tmp_path: Path) -> None:
    path = tmp_path / "it.bwrec"
    path.write_bytes(head(Recorded("./mine.py", {}, "")))
    done = bellwire("replay", str(path))
    assert (done.returncode, "is not a bundled one" in done.stderr) == (1, True)
    path.write_bytes(b"something else")
    assert "this is no recording of a device" in bellwire("replay", str(path), "bell").stderr
    assert issubclass(BadRecording, ValueError)
