"""Captures of running devices: by the daemon and by ``bellwire run``, begun and ended while a client is connected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from bellwire.capture.files import SMALLEST
from capture.reading import Packet, packets
from daemon.commands import COMMAND, PATIENCE, line, started
from operating.conftest import Run
from operating.instance import PLAIN, Instance, connect, eventually, over, read, write
from vfio_user import Client, Command

pytestmark = pytest.mark.daemon


def reads(found: list[Packet]) -> int:
    """How many replies to REGION_READ there are."""
    return sum(each.data[:1] == b"\1" and each.data[6] == Command.REGION_READ for each in found if each.interface == 0)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def begun(daemon: Instance, name: str, path: Path, *words: str) -> subprocess.Popen[str]:
    """``bellwire capture``, as soon as the file has its beginning."""
    process = subprocess.Popen(
        [*COMMAND, "capture", name, "-o", str(path), *words, *daemon.places],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert eventually(lambda: size(path))
    return process


def test_a_capture_begins_and_ends_while_the_client_is_connected(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    with connect(daemon.socket(name)) as client:
        read(client, PLAIN)
        with begun(daemon, name, path) as process:
            for value in range(100):
                write(client, PLAIN, value)
                assert read(client, PLAIN) == value
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        read(client, PLAIN)
    assert (process.returncode, err) == (0, f"capturing {name} to {path}; Ctrl-C ends it\n")
    assert out == f"400 messages, 0 events, {size(path)} bytes: {path} (it was stopped)\n"
    assert (reads(packets(path)), len(packets(path))) == (100, 401)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_capture_ends_after_its_time(daemon: Instance, run: Run, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    status, out, err = run("capture", name, "-o", str(path), "--for", "200ms", "--json")
    figures = json.loads(out)
    assert (err, figures["ended"]) == ("", "its time is over")
    assert (status, figures["messages"], figures["bytes"]) == (0, 0, size(path))
    assert [each.dissector for each in packets(path)] == ["bellwire"]


def test_what_was_captured_can_be_read_though_the_worker_is_killed(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client, begun(daemon, name, path) as process:
        for _ in range(50):
            read(client, PLAIN)
        os.kill(pid, signal.SIGKILL)
        assert over(pid)
        _, err = process.communicate(timeout=PATIENCE)
    assert reads(packets(path)) == 50
    assert (process.returncode, f"{name}: " in err or f"{name} is not running" in err) == (1, True), err


def test_files_take_turns(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    other = tmp_path / "a.1.pcapng"
    with (
        connect(daemon.socket(name)) as client,
        begun(daemon, name, path, "--files", "2", "--size", "64K") as process,
    ):
        for _ in range(1500):
            read(client, PLAIN)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert max(size(path), size(other)) <= SMALLEST
    found = [packets(each) for each in (path, other)]
    assert all(each[0].dissector == "bellwire" for each in found)
    assert 400 < sum(map(reads, found)) < 1500


def test_a_file_whose_turn_has_not_come_is_not_left_behind(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    with begun(daemon, name, path, "--files", "2") as process:
        assert (tmp_path / "a.1.pcapng").exists()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert [each.name for each in tmp_path.glob("*.pcapng")] == ["a.pcapng"]


def test_a_full_file_ends_the_capture(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    with connect(daemon.socket(name)) as client, begun(daemon, name, path, "--size", "64K") as process:
        for _ in range(500):
            read(client, PLAIN)
        out, _ = process.communicate(timeout=PATIENCE)
    assert "the file has 65536 bytes, which is the limit" in out
    assert SMALLEST - 200 < size(path) <= SMALLEST


def test_a_capture_ends_when_its_command_is_killed(daemon: Instance, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    with begun(daemon, name, path) as process:
        process.kill()

    def ended() -> bool:
        with connect(daemon.socket(name)) as client:
            before = size(path)
            read(client, PLAIN)
            return size(path) == before

    assert eventually(ended)


def test_two_captures_of_a_device_have_the_same_messages(daemon: Instance, tmp_path: Path) -> None:
    name, paths = daemon.add(), [tmp_path / "a.pcapng", tmp_path / "b.pcapng"]
    with (
        connect(daemon.socket(name)) as client,
        begun(daemon, name, paths[0]) as one,
        begun(daemon, name, paths[1]) as other,
    ):
        for _ in range(10):
            read(client, PLAIN)
        for process in (one, other):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
    assert [reads(packets(path)) for path in paths] == [10, 10]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "1"], "expected a number of bytes from 64K to 1024G, got '1'"),
        (["--size", "1025G"], "expected a number of bytes from 64K"),
        (["--for", "soon"], "as in 500ms, 10s or 5m"),
        (["--for", "0s"], "expected a time of more than 0"),
        (["--files", "5"], "invalid choice"),
    ],
)
def test_wrong_words_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        run("capture", "steady", "-o", str(tmp_path / "a"), *words)
    assert said in capsys.readouterr().err


def test_a_device_that_does_not_run_cannot_be_captured(daemon: Instance, run: Run, tmp_path: Path) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    status, _, err = run("capture", name, "-o", str(tmp_path / "a"))
    assert status == 1
    assert f"{name} is not running: it is stopped" in err


def test_a_capture_that_cannot_begin_leaves_no_file_behind(run: Run, tmp_path: Path) -> None:
    path, kept = tmp_path / "a.pcapng", tmp_path / "b.pcapng"
    kept.touch()
    for each in (path, kept):
        assert run("capture", "nope", "-o", str(each))[0] == 1
    assert list(tmp_path.iterdir()) == [kept]


def test_a_file_that_another_capture_writes_is_refused_and_stays_as_it_is(
    daemon: Instance, run: Run, tmp_path: Path
) -> None:
    name, path = daemon.add(), tmp_path / "a.pcapng"
    with begun(daemon, name, path) as process:
        before = path.read_bytes()
        status, _, err = run("capture", name, "-o", str(path), "--for", "1ms")
        assert path.read_bytes() == before
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert (status, f"{path}: in use by another capture or recording" in err) == (1, True)
    assert run("capture", name, "-o", str(path), "--for", "1ms")[0] == 0


def test_a_capture_cannot_be_taken_out_as_a_filter(daemon: Instance, run: Run, tmp_path: Path) -> None:
    name, path = daemon.add(), tmp_path / "a.json"
    with begun(daemon, name, path, "--timeline") as process:
        status, _, err = run("filter", name, "remove", "timeline")
        assert (status, "it belongs to a capture, and ends with it" in err) == (1, True)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
    assert "(it was stopped)" in out


def test_what_is_no_regular_file_is_refused(run: Run) -> None:
    status, _, err = run("capture", "steady", "-o", "/dev/null")
    assert (status, "/dev/null: captures and recordings are written to regular files" in err) == (1, True)


def test_bellwire_run_captures_from_the_first_message_on(tmp_path: Path) -> None:
    path, socket = tmp_path / "run.pcapng", tmp_path / "s"
    (tmp_path / "run").mkdir(mode=0o755)
    words = ["--socket-path", str(socket), "--runtime-dir", str(tmp_path / "run"), "--capture", str(path)]
    with started("run", "edu", "--name", "dut", *words) as process:
        line(process)
        with Client.connect(socket, timeout=PATIENCE) as client:
            client.read(0, 0, 4)
        live = tmp_path / "live.pcapng"
        told = ["--runtime-dir", str(tmp_path / "run"), "--for", "100ms"]
        subprocess.run([*COMMAND, "capture", "dut", "-o", str(live), *told], check=True, timeout=PATIENCE)
        assert len(packets(live)) == 1
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    found = packets(path)
    assert [each.data[6] for each in found if each.interface == 0][:2] == [Command.VERSION, Command.VERSION]
    assert reads(found) == 1
