"""``bellwire install``: what pip does not bring, where systems look for it, and back again."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.install import contents, record
from bellwired.install.layout import Layout

pytestmark = pytest.mark.slow

PLACES = [
    "bin/bellwire",
    "bin/bellwired",
    "lib/bellwire/bellwired.toml",
    "lib/systemd/system/bellwired.service",
    "lib/systemd/system/bellwired.socket",
    "lib/systemd/system/bellwire@.service",
    "lib/systemd/system/bellwire@.socket",
    "lib/systemd/user/bellwired.service",
    "lib/systemd/user/bellwired.socket",
    "lib/systemd/catalog/bellwire.catalog",
    "lib/sysusers.d/bellwire.conf",
    "lib/tmpfiles.d/bellwire.conf",
    "share/man/man1/bellwire.1",
    "share/man/man5/bellwire-device.toml.5",
    "share/man/man8/bellwired.8",
    "share/bash-completion/completions/bellwire",
    "share/zsh/site-functions/_bellwire",
    "share/fish/vendor_completions.d/bellwire.fish",
    "share/vfio-user/50-bellwire.json",
]


def all_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed for all users below /usr/local, by an administrator who keeps others out of new files."""
    destination = tmp_path_factory.mktemp("installed")
    before = os.umask(0o027)
    try:
        assert main(["install", "--system", "--destdir", str(destination)]) == 0
    finally:
        os.umask(before)
    return destination


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def install(destination: Path, command: str = "install") -> int:
    return main([command, "--system", "--destdir", str(destination)])


@pytest.mark.parametrize("place", PLACES)
def test_everything_is_where_it_belongs(installed: Path, place: str) -> None:
    assert (installed / "usr/local" / place).stat().st_size > 0


def test_a_strict_umask_keeps_no_user_out(installed: Path) -> None:
    for path in all_in(installed):
        mode = path.stat().st_mode
        assert mode & stat.S_IROTH, path
        assert not path.is_dir() or mode & stat.S_IXOTH, path


def test_units_and_managers_are_told_where_the_commands_are(installed: Path) -> None:
    for unit in (installed / "usr/local/lib/systemd").rglob("*.service"):
        assert "=/usr/local/bin/bellwire" in unit.read_text()
    about = json.loads((installed / "usr/local/share/vfio-user/50-bellwire.json").read_text())
    assert (about["type"], about["binary"]) == ("pci", "/usr/local/bin/bellwire")


def test_a_prefix_with_blanks_and_percent_signs_is_quoted(tmp_path: Path) -> None:
    prefix = Path("/opt/50% off")
    files = {file.path.name: file.content for file in contents.files(Layout.for_all(prefix), tmp_path)}
    words = '"/opt/50%% off/bin/bellwired"'
    assert f"ExecStart={words}\n" in files["bellwired.service"]
    assert f"ExecReload={words.replace('bellwired', 'bellwire')} reload\n" in files["bellwired.service"]
    assert json.loads(files["50-bellwire.json"])["binary"] == str(prefix / "bin/bellwire")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_starts_what_a_quoted_path_names(tmp_path: Path) -> None:
    layout = Layout.for_all(tmp_path / "100%n of it; $HOME # {}")
    layout.bin.mkdir(parents=True)
    for name in contents.COMMANDS:
        (layout.bin / name).write_text("")
        (layout.bin / name).chmod(0o755)
    (unit,) = (each for each in contents.files(layout, None) if each.path == layout.user_units / "bellwired.service")
    path = tmp_path / unit.path.name
    words = ["systemd-analyze", "verify", "--user", "--man=no", "--recursive-errors=no", str(path)]

    def said(text: str) -> str:
        path.write_text(text.replace("Requires=bellwired.socket\n", ""))
        done = subprocess.run(words, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
                              capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
        return done.stderr

    assert "not executable" not in said(unit.content)
    assert "not executable" in said(unit.content.replace('bellwired"', 'bellwirec"'))


@pytest.mark.parametrize("character", ['"', "'", "\\", "\n", "\x7f"])
def test_a_prefix_from_which_systemd_starts_nothing_is_refused(
    character: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--system", "--prefix", f"/opt/a{character}b", "--destdir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{f'/opt/a{character}b/bin'!r}: systemd starts no command from" in said
    assert "--prefix" in said
    assert all_in(tmp_path) == []


def test_no_file_names_another_prefix_or_the_destination(installed: Path) -> None:
    for path in all_in(installed):
        if path.is_file():
            text = path.read_text()
            assert str(installed) not in text, path
            assert "/usr/bin/" not in text, path


def test_what_was_installed_is_removed_and_nothing_else(destination: Path) -> None:
    other = destination / "usr/local/share/man/man1/other.1"
    other.parent.mkdir(parents=True)
    other.touch()
    before = all_in(destination)
    assert install(destination) == 0
    assert install(destination, "uninstall") == 0
    assert all_in(destination) == before


def test_a_configuration_stays(destination: Path) -> None:
    assert install(destination) == 0
    device = destination / "etc/bellwire/devices.d/disk.toml"
    device.write_text('device = "edu"\n')
    assert install(destination, "uninstall") == 0
    assert device.exists()


def test_the_record_suffices_to_remove_it_when_nothing_else_runs(destination: Path) -> None:
    assert install(destination) == 0
    assert record.main(["/usr/local/lib/bellwire/installed", str(destination)]) == 0
    assert all_in(destination) == []
    assert record.main(["/usr/local/lib/bellwire/installed", str(destination)]) == 1


def test_a_file_that_the_next_version_no_longer_has_goes(destination: Path) -> None:
    assert install(destination) == 0
    former = destination / "usr/local/share/man/man1/former.1"
    former.touch()
    listed = destination / "usr/local/lib/bellwire/installed"
    with listed.open("a") as lines:
        lines.write("/usr/local/share/man/man1/former.1\n")
    assert install(destination) == 0
    assert not former.exists()
    assert install(destination, "uninstall") == 0
    assert all_in(destination) == []


def test_a_file_of_somebody_else_stops_it_before_anything_is_written(
    destination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (destination / "usr/local/bin").mkdir(parents=True)
    (destination / "usr/local/bin/bellwire").write_text("mine")
    before = all_in(destination)
    assert install(destination) == 1
    assert "/usr/local/bin/bellwire is there already" in capsys.readouterr().err
    assert all_in(destination) == before


def test_nothing_to_remove_is_an_error_that_says_what_to_give(
    destination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(destination, "uninstall") == 1
    assert "--prefix" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["usr/bin/bellwire", "/usr/../etc/passwd", ""])
def test_a_record_that_names_other_places_is_refused(
    destination: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = destination / "usr/local/lib/bellwire/installed"
    listed.parent.mkdir(parents=True)
    listed.write_text(f"/usr/local/bin/bellwire\n{line}\n")
    assert install(destination, "uninstall") == 1
    assert "installed:2:" in capsys.readouterr().err


def test_a_users_own_goes_into_their_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert main(["install", "--user"]) == 0
    share = tmp_path / ".local/share"
    assert (share / "man/man1/bellwire.1").exists()
    assert f"ExecStart={tmp_path}/.local/bin/bellwired" in (share / "systemd/user/bellwired.service").read_text()
    assert not (share / "systemd/system").exists()
    assert main(["uninstall", "--user"]) == 0
    assert all_in(tmp_path) == []


def test_a_command_says_what_to_do_when_python_was_upgraded(tmp_path: Path) -> None:
    python, newer = tmp_path / "python", tmp_path / "python3.99"
    newer.write_text("#!/bin/sh\n")
    newer.chmod(0o755)
    python.symlink_to(newer)
    launcher = tmp_path / "bellwire"
    words = {"python": python, "version": "python3.98", "command": "/bin/true", "name": "bellwire"}
    launcher.write_text(contents.LAUNCHER.format(**words))
    done = subprocess.run(["sh", launcher], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("install Bellwire again\n")


def test_commands_that_are_in_place_already_are_not_written_again(tmp_path: Path) -> None:
    own = Path(str(distribution("bellwire").locate_file(""))).parents[2]
    files = {file.path for file in contents.files(Layout.for_all(own), None)}
    assert own / "bin/bellwire" not in files
    assert own / "share/man/man1/bellwire.1" in files
