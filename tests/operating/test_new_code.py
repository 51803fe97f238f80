"""Newer code goes on with the client that is there: bellwire reload, and bellwire run --reload."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwired import sources
from bellwired.commands.reloading import INTERVAL, Reloading
from bellwired.errors import CommandError
from bellwired.workers.code import KEY, MOST_BYTES, MOST_FILES, Code, find_left, left
from daemon.commands import PATIENCE, line, started
from operating.edited import edit, plugin
from operating.instance import EDITION, PLAIN, Instance, connect, read, write
from operating.varlink import Refused
from vfio_user import Client, Estate, Kept
from vhost.program import Program

DEVICE = """
from bellwire import Bar, PciDevice, Saved
from part import FACTOR

class Dut(PciDevice, vendor=0x1234, device=0x99, class_code=0xFF0000, name="dut"):
    mmio = Bar(0, size=64)
    word = mmio.reg(0)
    total = mmio.reg(4, access="ro")
    sum = Saved(0)

    @word.write
    def wrote(self, value: int) -> None:
        self.sum += FACTOR * value
        self.total = self.sum
"""
BORROWER = '''
from bellwire.bundled.vhost import Vhost

class Borrower(Vhost, name="borrower"):
    """A device of its own."""
'''
LENDER = """
from bellwire import Bar, PciDevice

class Lender(PciDevice, vendor=0x1234, device=0x98, class_code=0xFF0000, name="lender"):
    mmio = Bar(0, size=64)
    plain = mmio.reg(0x00)
    edition = mmio.reg(0x0C, access="constant", reset=1)
    moves = True
"""


@pytest.mark.daemon
def test_a_plugin_that_was_edited_goes_on_with_state_and_client(daemon: Instance) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        mend = plugin(daemon, 'access="constant", reset=1)', 'access="constant", reset=2)')
        try:
            done = daemon.reload()
            assert name in done["restarted"], str(done["failed"]) + daemon.log[-1500:]
            assert (read(client, PLAIN), read(client, EDITION)) == (42, 2)
            assert daemon.pid(name) == pid
            hand_overs = daemon.describe(name)["hand_overs"]
            assert (hand_overs["count"], hand_overs["reason"]) == (1, "its code was edited")
            assert 0 < hand_overs["pause_ms"] < 5000
        finally:
            mend()
        daemon.reload()
        assert (read(client, PLAIN), read(client, EDITION)) == (42, 1)
        assert daemon.reload()["restarted"] == []


@pytest.mark.daemon
@pytest.mark.parametrize("command", ["reload", "move"])
def test_a_device_that_has_handed_wires_on_goes_on_with_new_code_in_another_worker(
    daemon: Instance, command: str
) -> None:
    file = daemon.plugins / "lender.py"
    edit(file, LENDER)
    name = daemon.add('device = "lender"')
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        edit(file, LENDER.replace("reset=1", "raises"))
        assert name in daemon.reload()["failed"]
        assert (read(client, PLAIN), read(client, EDITION), daemon.pid(name)) == (42, 1, pid)
        edit(file, LENDER.replace("reset=1", "reset=2"))
        daemon.reload() if command == "reload" else daemon.call("Move", name=name)
        assert (read(client, PLAIN), read(client, EDITION)) == (42, 2)
        assert daemon.pid(name) != pid
        hand_overs = daemon.describe(name)["hand_overs"]
        assert (hand_overs["count"], hand_overs["reason"]) == (1, "its code was edited")
    daemon.remove(name)
    daemon.reload()
    file.unlink()


@pytest.mark.daemon
def test_the_one_connection_of_a_vhost_back_end_goes_on_with_new_code(daemon: Instance, tmp_path: Path) -> None:
    program, file = Program(tmp_path / "sock"), daemon.plugins / "borrower.py"
    try:
        edit(file, BORROWER)
        name = daemon.add(f'device = "borrower"\noptions = {{ type = "rng", backend = "unix:{tmp_path}/sock" }}')
        pid = daemon.pid(name)
        with connect(daemon.socket(name)) as client:
            edit(file, BORROWER + "\nEDITION = 2\n")
            assert name in daemon.reload()["restarted"]
            assert client.read(0, 0, 4) == bytes(4)
            assert daemon.pid(name) != pid, "a second connection is waited for three seconds"
        daemon.remove(name)
        daemon.reload()
    finally:
        file.unlink()
        program.crash()


@pytest.mark.daemon
def test_it_can_be_edited_after_a_crash_too(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("taken-over", name)
        mend = plugin(daemon, 'access="constant", reset=1)', 'access="constant", reset=2)')
        try:
            assert name in daemon.reload()["restarted"]
            assert (read(client, PLAIN), read(client, EDITION)) == (42, 2)
        finally:
            mend()


@pytest.mark.daemon
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Bar(0, size=4096)", "Bar(0, size=8192)", "the guest has seen something else: BAR 0 was 0x1000 bytes"),
        ("    def close(self)", "    def restored(self): raise KeyError\n\n    def close(self)", "KeyError"),
        ("    def close(self)", "    def restored(self): raise SystemExit\n\n    def close(self)", "SystemExit"),
        ("plain = mmio.reg(0x00)", "plain = mmio.reg(0x00, size=1)", "plain was 0x1234, which 1 bytes do not hold"),
        ("class Probe", "class Probe(", "probe.py"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_go_on_leaves_the_old_code_with_the_client(
    daemon: Instance, old: str, new: str, why: str
) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 0x1234)
        mend = plugin(daemon, old, new)
        try:
            refused = daemon.reload()["failed"][name]
            assert why in refused
            assert refused.count(f"{name}: ") == 1
            with pytest.raises(Refused, match=re.escape(why)):
                daemon.call("Move", name=name)
            assert (read(client, PLAIN), read(client, EDITION)) == (0x1234, 1)
        finally:
            mend()
        daemon.reload()
        assert read(client, PLAIN) == 0x1234


@pytest.mark.daemon
def test_a_client_whose_worker_dies_while_its_file_is_broken_keeps_the_code_of_before(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        for broken in ("class Probe(", "import nothing_like_this\n\n\nclass Probe"):
            mend = plugin(daemon, "class Probe", broken)
            try:
                for _ in range(2):
                    os.kill(daemon.pid(name), signal.SIGKILL)
                    told = events.until("old-code", name)["fields"]["text"]
                    events.until("taken-over", name)
                    assert (read(client, PLAIN), read(client, EDITION)) == (42, 1)
                assert re.search(r"it has those of [-0-9]{10} [:0-9]{8}: .*probe.py:[0-9]+: \w+Error", told)
                assert told in daemon.describe(name)["troubles"]["code"]
            finally:
                mend()
            assert name in daemon.reload()["restarted"]
            assert "code" not in daemon.describe(name)["troubles"]
            assert read(client, PLAIN) == 42


@pytest.mark.daemon
def test_a_package_whose_files_have_gone_goes_on_as_it_was_until_its_client_leaves(daemon: Instance) -> None:
    package = daemon.plugins / "duo"
    package.mkdir()
    (package / "part.py").write_text("FACTOR = 3\n")
    (package / "__init__.py").write_text(DEVICE.replace("from part", "from .part").replace("dut", "duo"))
    name = daemon.add('device = "duo"')
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, 0, 1)
        (package / "part.py").unlink()
        (package / "__init__.py").unlink()
        package.rmdir()
        os.kill(daemon.pid(name), signal.SIGKILL)
        events.until("taken-over", name)
        write(client, 0, 1)
        assert read(client, 4) == 6
    with daemon.monitor(name) as events:
        os.kill(daemon.pid(name), signal.SIGKILL)
        assert "no device 'duo'" in events.until("failed", name)["fields"]["text"]


@pytest.mark.daemon
def test_code_that_gets_no_further_than_its_start_is_exchanged_for_that_of_before(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        fatal = "    def recovered(self, torn): os._exit(3)\n\n    def close(self)"
        mend = plugin(daemon, "    def close(self)", fatal)
        try:
            os.kill(daemon.pid(name), signal.SIGKILL)
            assert "not got further than its start" in events.until("old-code", name)["fields"]["text"]
            events.until("taken-over", name)
            assert read(client, EDITION) == 1
        finally:
            mend()


@pytest.mark.parametrize("spoilt", [b"", b"nonsense", b"\0" * (2 * MOST_BYTES + 1)])
def test_code_that_was_left_and_cannot_be_used_is_none(spoilt: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(spoilt)
        file.flush()
        estate = Estate({KEY: Kept(KEY, {}, (file.fileno(),))})
        assert left(estate) is None
        with pytest.raises(CommandError, match="as it is"):
            find_left("dut", estate, CommandError("as it is"))


@pytest.mark.parametrize(("files", "size"), [(1, MOST_BYTES + 1), (MOST_FILES + 1, 0)])
def test_too_much_code_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, files: int, size: int
) -> None:
    texts: dict[str, tuple[sources.Stamp | None, bytes]] = {str(number): (None, bytes(size)) for number in range(files)}
    monkeypatch.setattr(sources, "as_run", lambda: sources.Sources("dut.py", False, texts))
    assert Code().kept == ()
    assert "not kept for a successor: too much" in caplog.text


@pytest.mark.daemon
def test_bellwire_run_goes_on_with_the_file_as_it_is_saved(tmp_path: Path) -> None:
    file, part, socket = tmp_path / "dut.py", tmp_path / "part.py", tmp_path / "s"
    file.write_text(DEVICE)
    part.write_text("FACTOR = 2\n")
    (tmp_path / "run").mkdir(mode=0o755)
    words = ["--socket-path", str(socket), "--runtime-dir", str(tmp_path / "run"), "--reload"]
    with started("run", str(file), *words) as process:
        line(process)
        with Client.connect(socket, timeout=PATIENCE) as client:

            def total() -> int:
                write(client, 0, 1)
                return read(client, 4)

            def grows_by(step: int) -> bool:
                """Whether the total comes to grow by ``step`` at each write."""
                deadline, before = time.monotonic() + PATIENCE, total()
                while (now := total()) - before != step:
                    assert time.monotonic() < deadline, "the new code does not go on"
                    before = now
                return True

            assert total() == 2
            edit(part, "FACTOR = 10\n")
            assert grows_by(10)
            edit(file, DEVICE.replace("FACTOR * value", "FACTOR * valu e"))
            refusal(process)
            assert grows_by(10)
            edit(file, DEVICE.replace("FACTOR * value", "7 * value"))
            assert grows_by(7)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def refusal(process: subprocess.Popen[str]) -> None:
    """Returns when the process has said that its new code is not used."""
    assert process.stderr is not None
    for text in process.stderr:
        if "its new code is not used" in text:
            assert "dut.py" in text
            return
    raise AssertionError("it has ended")


class Served:
    """Stands in for what serves a device: it counts reloads, and refuses them as it is told to."""

    def __init__(self) -> None:
        self.reloads = 0
        self.refuses = False
        self.moves = self.left = False
        self.look: Callable[[], None] = lambda: None
        self.loop = self

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        assert seconds == INTERVAL
        self.look = callback

    def reload(self) -> float | None:
        self.reloads += 1
        if self.refuses:
            raise CommandError("no")
        return None if self.moves else 0.01

    def leave(self) -> None:
        self.left = True


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Served, Path]:
    file = tmp_path / "dut.py"
    file.write_text("one")
    monkeypatch.setattr(sources, "loaded", lambda: {str(file): sources.stamp(file)})
    serving = Served()
    Reloading(serving).begin()  # type: ignore[arg-type]
    return serving, file


def test_a_change_counts_once_the_file_stays_as_it_is(watched: tuple[Served, Path]) -> None:
    serving, file = watched
    counts = []
    for text in ("one", "half", "half and ", "half and half", None, None, None):
        if text is not None:
            edit(file, text)
        serving.look()
        counts.append(serving.reloads)
    assert counts == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("moves", [False, True])
def test_a_device_that_has_to_move_for_new_code_leaves_for_its_successor(
    watched: tuple[Served, Path], moves: bool
) -> None:
    serving, file = watched
    serving.moves = moves
    edit(file, "more")
    for _ in range(2):
        serving.look()
    assert (serving.reloads, serving.left) == (1, moves)


def test_code_that_was_refused_is_tried_again_only_when_it_changes(
    watched: tuple[Served, Path], caplog: pytest.LogCaptureFixture
) -> None:
    serving, file = watched
    serving.refuses = True
    edit(file, "wrong")
    for _ in range(5):
        serving.look()
    assert serving.reloads == 1
    assert "dut.py changed: no. The code of before goes on" in caplog.text
    serving.refuses = False
    edit(file, "right at last")
    serving.look()
    serving.look()
    assert serving.reloads == 2
