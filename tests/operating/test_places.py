"""Where configuration is looked for, and which file counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bellwired import settings
from bellwired.commands.control_client import Instance, NoDaemonError, method
from bellwired.errors import CommandError
from bellwired.listen import listening
from bellwired.places import Places

USER = {"HOME": "/home/ada", "XDG_RUNTIME_DIR": "/run/user/7"}
SYSTEM = ("/etc/bellwire", "/run/bellwire", "/usr/local/lib/bellwire", "/usr/lib/bellwire")


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may be installed on this machine: its /run/bellwire does not belong to root."""
    monkeypatch.setattr("bellwired.places._given_away", lambda: None)


def texts(paths: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(map(str, paths))


def test_root_has_the_systems_places() -> None:
    places = Places.of(environment={}, uid=0)
    assert texts(places.config) == SYSTEM
    assert texts(places.plugins) == tuple(f"{folder}/plugins" for folder in SYSTEM)
    assert str(places.control) == "/run/bellwire/control"
    assert str(places.socket("disk0")) == "/run/bellwire/disk0.sock"


def test_a_user_has_places_of_their_own_and_the_systems_plugins_after_them() -> None:
    places = Places.of(environment=USER, uid=7)
    own = ("/home/ada/.config/bellwire", "/run/user/7/bellwire", "/home/ada/.local/share/bellwire")
    assert texts(places.config) == own
    assert texts(places.plugins) == tuple(f"{folder}/plugins" for folder in (*own, *SYSTEM))
    assert str(places.runtime) == "/run/user/7/bellwire"


def test_each_user_may_name_the_other_instance() -> None:
    assert Places.of(environment=USER, uid=7, whose="system") == Places.of(environment={}, uid=0)
    assert Places.of(environment=USER, uid=0, whose="user") == Places.of(environment=USER, uid=7)
    service = {**USER, "RUNTIME_DIRECTORY": "/run/user/7/mine"}
    assert Places.of(environment=service, uid=7, whose="user") == Places.of(environment=USER, uid=7)


def own_and_other(folder: Path) -> Instance:
    for name in ("own", "other"):
        (folder / name).mkdir()
    return Instance(
        Places((), (), folder / "own", "user"), other=Places((), (), folder / "other", "system"), timeout=0.1
    )


def test_a_users_commands_ask_the_users_own_daemon_and_the_systems_only_if_that_does_not_run(tmp_path: Path) -> None:
    instance = own_and_other(tmp_path)
    with pytest.raises(NoDaemonError, match=f"neither yours .{tmp_path}/own/control. nor the system's") as error:
        method(instance, "List")
    assert error.value.hint.startswith("systemctl --user start bellwired")
    with listening(tmp_path / "other/control"):
        assert instance.asked.daemon == "the system's daemon"
        assert instance.hint("help") == "help; the system's daemon was asked"
        with listening(tmp_path / "own/control"):
            assert instance.asked.daemon == "your own daemon"
            assert instance.hint("") == "your own daemon was asked; --system asks the system's"
            with pytest.raises(CommandError, match=f"^{tmp_path}/own/control: your own daemon does not answer"):
                method(instance, "List")
    assert instance.hint("help") == "help"


def test_the_xdg_variables_move_a_users_places() -> None:
    moved = {**USER, "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d"}
    places = Places.of(environment=moved, uid=7)
    assert texts(places.config[:3]) == ("/c/bellwire", "/run/user/7/bellwire", "/d/bellwire")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"])
@pytest.mark.parametrize("value", ["", "relative", "./here", "~/there"])
def test_a_folder_of_the_environment_that_is_relative_does_not_count(variable: str, value: str) -> None:
    given = {**USER, variable: value}
    without = {name: folder for name, folder in given.items() if name != variable}
    assert Places.of(environment=given, uid=7) == Places.of(environment=without, uid=7)
    assert all(folder.is_absolute() for folder in Places.of(environment=given, uid=7).config)


def test_a_user_without_a_runtime_folder_has_one_in_tmp_itself_which_nobody_else_can_move() -> None:
    assert str(Places.of(environment={"HOME": "/home/ada"}, uid=7).runtime) == "/tmp/bellwire-7"


def test_a_service_uses_the_runtime_folder_that_it_was_given_and_the_systems_files() -> None:
    places = Places.of(environment={**USER, "RUNTIME_DIRECTORY": "/run/bellwire"}, uid=7)
    assert texts(places.config) == SYSTEM
    assert str(places.runtime) == "/run/bellwire"


def test_private_folders_replace_them_all(tmp_path: Path) -> None:
    places = Places.of(tmp_path, Path("/p/run"), environment=USER, uid=0)
    assert texts(places.config) == (str(tmp_path),)
    assert texts(places.plugins) == (f"{tmp_path}/plugins",)
    assert str(places.control) == "/p/run/control"


def test_private_folders_mean_the_same_to_commands_that_are_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    places = Places.of(Path("sys"), Path("run"))
    assert texts(places.config) == ("/proc/sys",)
    assert texts(places.plugins) == ("/proc/sys/plugins",)
    assert str(places.socket("one")) == "/proc/run/one.sock"


class Folders:
    """Three configuration folders, the one that wins first."""

    def __init__(self, root: Path) -> None:
        self.high, self.middle, self.low = (root / name for name in ("high", "middle", "low"))
        for folder in (self.high, self.middle, self.low):
            (folder / "devices.d").mkdir(parents=True)
        self.places = Places((self.high, self.middle, self.low), (), root / "run")

    def found(self) -> list[str]:
        return [str(path.parent.parent.name) + "/" + path.name for path in self.places.files("devices.d", ".toml")]


def test_the_same_name_in_a_higher_folder_overrides(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for folder in (folders.low, folders.middle):
        (folder / "devices.d/one.toml").write_text("x = 1")
    (folders.low / "devices.d/two.toml").write_text("x = 1")
    assert folders.found() == ["middle/one.toml", "low/two.toml"]


def test_an_empty_file_masks_those_below(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.low / "devices.d/one.toml").write_text("x = 1")
    (folders.high / "devices.d/one.toml").touch()
    assert folders.found() == []


def test_a_link_to_dev_null_masks_those_below(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.low / "devices.d/one.toml").write_text("x = 1")
    (folders.high / "devices.d/one.toml").symlink_to("/dev/null")
    assert folders.found() == []


def test_a_masked_daemon_file_is_no_file(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.low / "bellwired.toml").write_text("x = 1")
    assert folders.places.file("bellwired.toml") == folders.low / "bellwired.toml"
    (folders.middle / "bellwired.toml").symlink_to("/dev/null")
    assert folders.places.file("bellwired.toml") is None


def test_what_an_editor_leaves_behind_is_no_device(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.low / "devices.d/.one.toml").write_text("x = 1")
    (folders.low / "devices.d/.#one.toml").symlink_to("ada@host.1234")
    (folders.low / "devices.d/one.toml~").write_text("x = 1")
    assert folders.found() == []


def test_folders_that_are_not_there_are_no_trouble(tmp_path: Path) -> None:
    places = Places((tmp_path / "nowhere",), (), tmp_path)
    assert list(places.files("devices.d", ".toml")) == []
    assert places.file("bellwired.toml") is None


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.name)])
def test_a_folder_that_cannot_be_read_is_not_one_without_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "devices.d")
    places = Places((tmp_path,), (), tmp_path)
    with pytest.raises(CommandError, match=f"{tmp_path}/devices.d: "):
        list(places.files("devices.d", ".toml"))
    with pytest.raises(CommandError, match=f"{tmp_path}/devices.d/one: "):
        Places((tmp_path / "devices.d",), (), tmp_path).file("one")


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.low / "devices.d/one.toml").symlink_to("one.toml")
    (folders.low / "devices.d/two.toml").write_text('device = "edu"')
    found = settings.load(folders.places)
    assert "Too many levels of symbolic links" in str(found.errors["one"])
    assert list(found.devices) == ["two"]


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no such folder"):
        Places.of(tmp_path / "etx")
