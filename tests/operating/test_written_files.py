"""What commands write, and where: never through a link of another user, and never where another user chooses."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme.store import Store
from bellwire.storage import Disk
from bellwire.stream import open_stream
from bellwired.commands import demo, drop_in, export, template
from bellwired.commands.cli import main
from bellwired.errors import CommandError
from bellwired.manager.manager import prepare
from operating.fake_daemon import FakeDaemon

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of root's. ``theirs`` is a folder that another user may write."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o1777)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/passwd").write_text("root's")
    return tmp_path / "root/passwd"


def plant(link: Path, target: Path) -> None:
    link.symlink_to(target)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)


WRITE: dict[str, Callable[[Path], object]] = {
    "demo --json": lambda path: demo._write(path, "x"),
    "demo --json, before it measures": lambda path: demo._write(path, "", mode="a"),
    "export -w": lambda path: export.write(path, "x"),
    "edit, enable, disable": lambda path: drop_in.write(path, "x"),
    "new": lambda path: template.write("mine", path.parent),
}


@as_root
@pytest.mark.parametrize("what", WRITE)
def test_nothing_is_written_through_a_link_of_another_user(tmp_path: Path, precious: Path, what: str) -> None:
    for name in ("out", "mine.py"):
        plant(tmp_path / f"theirs/{name}", precious)
    WRITE[what](tmp_path / "theirs/out") if what.startswith("edit") else refused(what, tmp_path / "theirs/out")
    assert precious.read_text() == "root's"


@as_root
@pytest.mark.parametrize("what", WRITE)
def test_nothing_is_written_in_a_folder_behind_a_link_of_another_user(
    tmp_path: Path, precious: Path, what: str
) -> None:
    plant(tmp_path / "theirs/folder", precious.parent)
    refused(what, tmp_path / "theirs/folder/out")
    assert os.listdir(precious.parent) == ["passwd"]


def refused(what: str, path: Path) -> None:
    with pytest.raises(CommandError):
        WRITE[what](path)


def test_a_new_device_is_not_written_through_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "mine.py").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match=r"mine\.py exists already"):
        template.write("mine", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@as_root
def test_a_drop_in_is_not_written_where_another_user_may_change_it(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(CommandError, match=f"^{tmp_path}: belongs to user 65534"):
        drop_in.write(tmp_path / "devices.d/one.toml.d/override.toml", "x = 1")
    assert not list(tmp_path.iterdir())


def test_a_daemon_that_was_taken_over_does_not_choose_where_root_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names a folder of its own as the one that has the configuration."""
    evil = tmp_path / "evil"
    (evil / "devices.d").mkdir(parents=True)
    (evil / "devices.d/one.toml").write_text('device = "bell"\n')
    (evil / "devices.d").chmod(0o777)
    monkeypatch.setattr("operating.fake_daemon.replies", lambda: {"GetInfo": INFO, "Folders": {"folders": [str(evil)]}})
    with FakeDaemon(tmp_path / "control"):
        for words in (["disable", "one"], ["edit", "one"]):
            monkeypatch.setenv("EDITOR", "touch")
            assert main([*words, "--runtime-dir", str(tmp_path), "--timeout", "5"]) == 1
    assert "devices.d: others than its owner may write it" in capsys.readouterr().err
    assert os.listdir(evil / "devices.d") == ["one.toml"]


INFO = {"vendor": "", "product": "", "version": "", "url": "", "interfaces": ["org.bellwire.Manager"]}


def test_the_text_to_edit_is_in_a_folder_that_nobody_else_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config/devices.d").mkdir(parents=True)
    (tmp_path / "config/devices.d/one.toml").write_text('device = "bell"\n')
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    script = tmp_path / "editor.py"
    script.write_text(
        "import os, sys; print(oct(os.stat(os.path.dirname(sys.argv[1])).st_mode), file=open('seen', 'w'))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    words = ["edit", "one", "--config-dir", str(tmp_path / "config"), "--runtime-dir", str(tmp_path)]
    assert main(words) == 0
    assert (tmp_path / "seen").read_text() == "0o40700\n"
    assert not list((tmp_path / "tmp").iterdir())


@as_root
@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_root_installs_nothing_below_a_folder_of_another_user(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (home / "lib/bellwire").mkdir(parents=True)
    (home / "lib/bellwire/installed").write_text(f"{tmp_path}/precious\n")  # root's uninstall would remove it
    (tmp_path / "precious").touch()
    os.chown(home, NOBODY, NOBODY)
    assert main([command, "--system", "--prefix", str(home)]) == 1
    said = capsys.readouterr().err
    assert f"bellwire: {home}: belongs to user 65534 (nobody)\n" in said
    assert "bellwire install --user" in said
    assert (tmp_path / "precious").exists()
    assert os.listdir(home) == ["lib"]


@as_root
def test_a_file_is_installed_in_the_place_of_a_link_and_not_through_it(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "to/usr/local/lib/bellwire").mkdir(parents=True)
    plant(tmp_path / "to/usr/local/lib/bellwire/installed.half", precious)
    assert main(["install", "--system", "--destdir", str(tmp_path / "to")]) == 0
    assert precious.read_text() == "root's"


@as_root
def test_a_runtime_folder_below_one_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with pytest.raises(CommandError, match=f"^{tmp_path}/theirs: belongs to user 65534"):
        prepare(tmp_path / "theirs/run")


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_images_stores_and_logs_are_their_owners_alone_whatever_the_umask(tmp_path: Path, no_umask: None) -> None:
    Disk.open(tmp_path / "disk.img", size=512).close()
    open_stream(f"file:{tmp_path}/log").close()
    store = Store(tmp_path / "store")
    store.write(*store.encode())
    store.disk(1, 512, 512, new=True).close()
    store.close()
    for path in tmp_path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
