"""Another user listens where a daemon or a device should: nothing is said to them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.places import Places
from operating.fake_daemon import FakeDaemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY, SERVICE = 65534, 1
COMMANDS = [["list"], ["status", "one"], ["stop", "one"], ["logs", "one"], ["monitor"], ["reload"], ["edit", "one"]]


def ask(folder: Path, *words: str) -> int:
    return main([*words, "--runtime-dir", str(folder), "--timeout", "5"])


@pytest.fixture(params=["a sticky folder", "the other user's folder"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / "all/theirs"
    made.mkdir(parents=True)
    made.parent.chmod(0o1777)
    if request.param == "a sticky folder":
        made.chmod(0o1777)
    else:
        os.chown(made, NOBODY, NOBODY)
    return made


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_says_nothing_to_another_user_who_listens(
    theirs: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeDaemon(theirs / "control", NOBODY) as fake:
        assert ask(theirs, *words) == 1
    assert fake.called == []
    said = capsys.readouterr().err
    who = f"user 65534 (nobody), process {os.getpid()} listens there, who is neither root nor you"
    assert f"bellwire: {theirs}/control: {who}\n  ask as that user" in said


@pytest.mark.parametrize("words", [["status", "one"], ["stop", "one"]], ids=" ".join)
def test_a_device_in_the_foreground_is_that_of_a_user_who_may_be_trusted(theirs: Path, words: list[str]) -> None:
    with FakeDaemon(theirs / "one.control", NOBODY) as fake:
        assert ask(theirs, *words) == 1
    assert fake.called == []


def test_the_owner_of_a_folder_that_only_root_can_have_made_is_trusted(tmp_path: Path) -> None:
    runtime = tmp_path / "bellwire"
    runtime.mkdir()
    os.chown(runtime, SERVICE, SERVICE)
    tmp_path.parent.chmod(0o755)
    with FakeDaemon(runtime / "control", SERVICE) as fake:
        ask(runtime, "reload")
        assert "Reload" in fake.called
    with FakeDaemon(runtime / "control", NOBODY) as fake:
        assert ask(runtime, "reload") == 1
        assert fake.called == []
    tmp_path.chmod(0o1777)
    with FakeDaemon(runtime / "control", SERVICE) as fake:
        assert ask(runtime, "reload") == 1
        assert fake.called == []


def test_the_user_of_sudo_is_trusted(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    with FakeDaemon(theirs / "control", NOBODY) as fake:
        ask(theirs, "reload")
        assert "Reload" in fake.called


def test_a_link_of_another_user_leads_a_command_to_no_other_socket(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeDaemon(tmp_path / "another", 0) as fake:
        (theirs / "control").symlink_to(tmp_path / "another")
        os.chown(theirs / "control", NOBODY, NOBODY, follow_symlinks=False)
        assert ask(theirs, "reload") == 1
        assert fake.called == []
    assert "is not followed" in capsys.readouterr().err


@pytest.fixture
def device(theirs: Path) -> Iterator[Path]:
    """A device's socket on which the other user listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(theirs / "d.sock"))
        os.seteuid(NOBODY)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        yield theirs / "d.sock"


@pytest.mark.kvm
def test_a_vm_lends_its_memory_to_no_other_user(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "--guest", "bell", "--device", str(device)]) == 1
    assert f"{device}: user 65534 (nobody), process {os.getpid()} listens there" in capsys.readouterr().err


def test_the_name_of_a_file_is_no_name_of_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "\x1b[2J.control").touch()
    assert list(Places((), (), tmp_path).foreground())
    assert ask(tmp_path, "list") == 1
    assert "[2J" not in capsys.readouterr().err
