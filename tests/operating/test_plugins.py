"""Where device classes come from, and whom a plugin may hurt: nobody."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import pwd
import py_compile
import shutil
from pathlib import Path

import pytest

from bellwire import OptionError
from bellwire.bundled.edu import Edu
from bellwired.errors import CommandError
from bellwired.find import entry_points, find_device, plugins
from bellwired.sources import open_trusted
from operating.instance import PLUGINS, Instance

TWO = """
from bellwire import PciDevice

class First(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    "The first."

class Second(PciDevice, vendor=0x1234, device=2, class_code=0x088000):
    "The second."
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "plugins"
    made.mkdir()
    shutil.copyfile(PLUGINS / "probe.py", made / "probe.py")
    return made


def listed(folder: Path) -> dict[str, str]:
    """The plugins by name: their error, or what they are."""
    return {each.name: each.error or each.description for each in plugins([folder])}


def test_bundled_devices_are_found_by_name(folder: Path) -> None:
    assert find_device("edu", [folder]) is Edu
    assert {"bell", "edu"} <= set(listed(folder))


def test_a_plugin_is_found_by_its_files_name(folder: Path) -> None:
    assert find_device("probe", [folder]).name == "probe"
    assert listed(folder)["probe"] == "Misbehaves as it is told to."


def test_of_several_devices_in_a_plugin_the_name_after_the_colon_picks_one(folder: Path) -> None:
    (folder / "two.py").write_text(TWO)
    assert find_device("two:second", [folder]).name == "second"
    assert listed(folder)["two:first"] == "The first."
    with pytest.raises(CommandError, match="several devices: first, second"):
        find_device("two", [folder])
    with pytest.raises(CommandError, match="has no device 'third'"):
        find_device("two:third", [folder])


def test_a_plugin_is_listed_by_the_name_that_it_is_found_by(folder: Path) -> None:
    (folder / "probe.py").rename(folder / "my_nic.py")
    (folder / "two.py").write_text(TWO)
    names = [each.name for each in plugins([folder]) if each.source.startswith(str(folder))]
    assert names == ["my_nic", "two:first", "two:second"]
    assert [find_device(name, [folder]).name for name in names] == ["probe", "first", "second"]


def test_a_plugin_is_run_as_it_is_written_whatever_bytecode_lies_beside_it(folder: Path) -> None:
    path = folder / "probe.py"
    text = path.read_text()
    path.write_text(text.replace("as it is told to", "as it was told to"))
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.write_text(text)
    assert find_device("probe", [folder]).__doc__ == "Misbehaves as it is told to."


def test_a_higher_folders_plugin_wins(folder: Path, tmp_path: Path) -> None:
    higher = tmp_path / "higher"
    higher.mkdir()
    (higher / "probe.py").write_text(TWO.replace("class First", "class Probe").partition("class Second")[0])
    assert find_device("probe", [higher, folder]).__doc__ == "The first."
    assert [each.description for each in plugins([higher, folder]) if each.name == "probe"] == ["The first."]


def test_entry_points_are_read_again_when_a_package_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = entry_points().names
    assert entry_points() is entry_points()
    package = tmp_path / "example-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: example\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[bellwire.devices]\nexample = example:Device\n")
    os.utime(tmp_path, ns=(0, 0))
    assert entry_points().names == before | {"example"}


def test_an_entry_point_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = importlib.metadata.EntryPoint("teaching", "bellwire.bundled.edu:Edu", "bellwire.devices")
    bad = importlib.metadata.EntryPoint("broken", "no_such_module:Device", "bellwire.devices")
    odd = importlib.metadata.EntryPoint("odd", "os:path", "bellwire.devices")
    monkeypatch.setattr("bellwired.find.entry_points", lambda: [good, bad, odd])
    assert find_device("teaching", [folder]) is Edu
    assert "ModuleNotFoundError" in listed(folder)["broken"]
    assert "not a complete bellwire.PciDevice" in listed(folder)["odd"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nothing_like_this", "broken.py:1: ModuleNotFoundError"),
        ("def", "broken.py:1: SyntaxError"),
        ("\n\nraise SystemExit(3)", "broken.py:3: SystemExit: 3"),
        ("x = 1", "defines no device"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_listed_with_its_error(folder: Path, text: str, error: str) -> None:
    (folder / "broken.py").write_text(text)
    found = listed(folder)
    assert error in found["broken"]
    assert found["probe"] == "Misbehaves as it is told to."


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o1666])
def test_a_plugin_that_others_may_write_is_refused(folder: Path, mode: int, group: list[str]) -> None:
    group.append("somebody")
    (folder / "probe.py").chmod(mode)
    assert "others than its owner may write it" in listed(folder)["probe"]
    with pytest.raises(CommandError, match="others than its owner"):
        find_device("probe", [folder])


def test_the_private_group_of_the_owner_may_write_a_plugin(folder: Path, group: list[str]) -> None:
    folder.chmod(0o775)
    (folder / "probe.py").chmod(0o664)
    assert find_device("probe", [folder]).name == "probe"
    group.append(pwd.getpwuid(os.geteuid()).pw_name)  # that one is no other
    assert find_device("probe", [folder]).name == "probe"


def test_a_group_that_is_another_users_too_is_not_private(
    folder: Path, group: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = pwd.getpwuid(os.geteuid())
    other = pwd.struct_passwd(("other", "x", owner.pw_uid + 1, owner.pw_gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [owner, other])
    (folder / "probe.py").chmod(0o664)
    with pytest.raises(CommandError, match="others than its owner"):
        find_device("probe", [folder])


def test_a_group_of_another_name_is_not_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = grp.struct_group(("staff", "x", os.getegid(), []))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: found)
    (folder / "probe.py").chmod(0o664)
    with pytest.raises(CommandError, match="others than its owner"):
        find_device("probe", [folder])


def test_a_plugin_in_a_folder_that_others_may_write_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(CommandError, match="others than its owner"):
        find_device("probe", [folder])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_plugin_that_belongs_to_somebody_else_is_refused(folder: Path) -> None:
    os.chown(folder / "probe.py", 65534, 65534)
    with pytest.raises(CommandError, match="belongs to user 65534"):
        find_device("probe", [folder])


def test_a_link_is_judged_by_what_it_leads_to(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.py"
    shutil.copyfile(PLUGINS / "probe.py", target)
    target.chmod(0o666)
    (folder / "linked.py").symlink_to(target)
    with pytest.raises(CommandError, match=f"{target}: others"):
        find_device("linked", [folder])
    with pytest.raises(CommandError, match="No such file"):
        open_trusted(folder / "gone.py")


def test_a_link_in_a_folder_that_others_may_write_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "linked.py").symlink_to(shutil.copyfile(PLUGINS / "probe.py", tmp_path / "elsewhere.py"))
    folder.chmod(0o777)
    with pytest.raises(CommandError, match=f"{folder}: others"):
        find_device("linked", [folder])


def test_a_plugin_that_cannot_be_used_fails_its_device_alone(daemon: Instance) -> None:
    (daemon.plugins / "broken.py").write_text("1 / 0")
    daemon.configure("unlucky", 'device = "broken"')
    failed = daemon.reload()["failed"]
    assert list(failed) == ["unlucky"]
    assert "broken.py:1: ZeroDivisionError: division by zero" in failed["unlucky"]
    assert daemon.describe("unlucky")["state"] == "failed"
    assert daemon.describe("steady")["state"] == "running"


def test_a_file_that_others_may_write_is_refused_by_its_path_too(daemon: Instance, tmp_path: Path) -> None:
    path = tmp_path / "probe.py"
    shutil.copyfile(PLUGINS / "probe.py", path)
    path.chmod(0o666)
    daemon.configure("unsafe", f'device = "{path}"')
    assert "others than its owner may write it" in daemon.reload()["failed"]["unsafe"]
    path.chmod(0o644)
    daemon.configure("unsafe", f'device = "{path}:probe"')
    assert daemon.reload()["restarted"] == ["unsafe"]


def test_wrong_options_are_refused_before_anything_starts(daemon: Instance) -> None:
    daemon.configure("wrong", 'device = "probe"\noptions.pase = 1')
    assert "probe has no option pase: did you mean pace?" in daemon.reload()["failed"]["wrong"]
    device = daemon.describe("wrong")
    assert (device["state"], device["restarts"]) == ("failed", 0)
    assert not daemon.socket("wrong").exists()


def test_a_whole_number_will_do_for_an_option_with_a_fraction_and_a_truth_for_no_number() -> None:
    device = Edu(dma_delay=1)
    assert device.dma_delay == 1.0
    device.core.close()
    with pytest.raises(OptionError, match="expected a value of type float"):
        Edu(dma_delay=True)
