"""``bellwire run --record`` and ``bellwire replay``, as users meet them."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellwire.recording import BadRecording, Recorded
from bellwire.recording.format import head, record
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


def end(process: subprocess.Popen[str]) -> str:
    """Ends the device in order; what it has said on standard error."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=PATIENCE)[1]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Serve edu as ``dut``, where no other test looks."""
    (tmp_path / "run").mkdir(mode=0o755)
    return ["run", "edu", "--name", "dut", "--socket-path", str(tmp_path / "s"), "--runtime-dir", str(tmp_path / "run")]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_replay_is_identical_and_a_changed_device_differs(mine: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, str(mine), "-o", "factor=3")
    done = bellwire("replay", str(path), str(mine))
    assert (done.returncode, done.stdout.count(": identical\n"), done.stderr) == (0, 1, "")
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


def test_to_test_refuses_a_device_that_the_test_could_not_import(mine: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, str(mine))
    for file, said in (("apart/mine.py", "must lie beside it"), ("my one.py", "cannot import")):
        elsewhere = tmp_path / file
        elsewhere.parent.mkdir(exist_ok=True)
        elsewhere.write_text(MINE)
        done = bellwire("replay", str(path), str(elsewhere), "--to-test", str(tmp_path / "test_it.py"))
        assert done.returncode == 1
        assert said in done.stderr
        assert not (tmp_path / "test_it.py").exists()


def test_to_test_takes_a_recording_of_any_name(mine: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, str(mine)).rename(tmp_path / 'a "b\\c ü.bwrec')
    test = tmp_path / "test_it.py"
    assert bellwire("replay", str(path), str(mine), "--to-test", str(test)).returncode == 0
    assert f"with_name({path.name!r})" in test.read_text()
    compile(test.read_text(), str(test), "exec")


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


@pytest.mark.parametrize(("flag", "what"), [("--record", "recording"), ("--timeline", "timeline")])
def test_a_full_disk_is_told_in_the_log_and_at_the_end(words: list[str], tmp_path: Path, flag: str, what: str) -> None:
    path = tmp_path / "it"
    with started(*words, flag, str(path)) as process:
        line(process)
        with Client.connect(tmp_path / "s", timeout=PATIENCE) as client:
            full = path.stat().st_size + 100
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (full, full))  # as a disk with no more room
            for value in range(100):
                client.write(0, 0x80, value.to_bytes(4, "little"))
                client.write(0, 0x8, value.to_bytes(4, "little"))
        said = end(process)
    why = r"a write failed: (No space left on device|File too large)"
    amount = rf"\d+ (inputs|events), {path.stat().st_size:,} bytes"
    assert re.search(rf"the {what} has ended early: {why}; it has {amount}", said), said
    assert re.search(rf"{what} in {path}: ended early \({why}\), with {amount}", said), said


def test_the_summary_tells_of_the_recording(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "it.bwrec"
    with started(*words, "--record", str(path)) as process:
        line(process)
        with Client.connect(tmp_path / "s", timeout=PATIENCE) as client:
            client.read(0, 0, 4)
        said = end(process)
    assert re.search(rf"recording in {path}: \d+ inputs, {path.stat().st_size:,} bytes", said), said


@pytest.mark.parametrize("flag", ["--record", "--timeline", "--capture"])
def test_what_is_no_regular_file_is_refused(words: list[str], flag: str) -> None:
    done = bellwire(*words, flag, "/dev/full")
    assert done.returncode == 1
    assert "/dev/full: captures and recordings are written to regular files" in done.stderr


def test_the_recording_cannot_be_taken_out_as_a_filter(words: list[str], tmp_path: Path) -> None:
    with started(*words, "--record", str(tmp_path / "it")) as process:
        line(process)
        done = bellwire("filter", "dut", "remove", "record", *words[-2:])
        end(process)
    assert (done.returncode, "it is the recording of --record, and ends with the device" in done.stderr) == (1, True)


def test_a_file_that_is_recorded_to_is_refused_and_stays_as_it_is(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "it"
    with started(*words, "--record", str(path)) as process:
        line(process)
        before = path.read_bytes()
        done = bellwire("run", "edu", "--socket-path", str(tmp_path / "t"), "--name-if-free", "--record", str(path))
        assert path.read_bytes() == before
        end(process)
    assert (done.returncode, f"{path}: in use by another capture or recording" in done.stderr) == (1, True)


def empty(path: Path, device: str = "edu") -> Path:
    """A recording without an end, in which nothing has happened but a reset."""
    path.write_bytes(head(Recorded(device, {}, "")) + record("B", 1, 0) + record("X", 0, 1) + record("e"))
    return path


@pytest.mark.parametrize("content", [b"something else", b"BWREC\r\n\x1a\x01\x02{}"])
def test_an_error_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "it.bwrec"
    path.write_bytes(content)
    assert f"{path}: " in bellwire("replay", str(path), "edu").stderr


def test_a_replay_says_which_device_was_recorded(tmp_path: Path) -> None:
    path = empty(tmp_path / "it.bwrec")
    assert bellwire("replay", str(path), "nvme").stdout.startswith(f"{path}: recorded of edu, replayed with nvme\n")


@pytest.mark.parametrize("rest", [b"", record("B", 1, 0) + record("Z")])
def test_a_recording_in_which_nothing_happens_is_an_error(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "it.bwrec"
    path.write_bytes(head(Recorded("edu", {}, "")) + rest)
    done = bellwire("replay", str(path))
    assert (done.returncode, f"{path}: " in done.stderr) == (1, True)


def test_a_fault_inside_the_device_is_refused_and_leaves_the_file_alone(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"mine")
    done = bellwire(
        *["nvme" if word == "edu" else word for word in words], "--filter", "nvme-status", "--record", str(path)
    )
    assert (done.returncode, "filter nvme-status does not go with a recording" in done.stderr) == (1, True)
    assert path.read_bytes() == b"mine"


def test_a_replay_says_why_a_recording_may_have_no_end(tmp_path: Path) -> None:
    said = bellwire("replay", str(empty(tmp_path / "it.bwrec"))).stdout
    assert "the recording has no end: its writer was killed, or its file or the disk was full" in said


def test_to_test_says_what_it_wrote_and_overwrites_nothing(tmp_path: Path) -> None:
    path, test = empty(tmp_path / "it.bwrec"), tmp_path / "test_it.py"
    assert f"{test}: written\n" in bellwire("replay", str(path), "--to-test", str(test)).stdout
    test.write_text("mine")
    done = bellwire("replay", str(path), "--to-test", str(test))
    assert (done.returncode, f"{test} exists already" in done.stderr, test.read_text()) == (1, True, "mine")


def test_to_test_says_where_the_test_must_lie(tmp_path: Path) -> None:
    path = empty(tmp_path / "it.bwrec")
    done = bellwire("replay", str(path), "--to-test", "/other/folder/t.py")
    assert (done.returncode, f"beside its recording, in {tmp_path}" in done.stderr) == (1, True)
