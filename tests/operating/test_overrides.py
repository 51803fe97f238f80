"""Drop-ins, and the commands that write and show them: enable, disable, edit, check, cat-config NAME."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.places import Places
from bellwired.settings import drop_ins, load
from operating.conftest import Run
from operating.instance import PLUGINS, Instance

BAD = 'device = "probe"\nmood = 1'


def drop_in(daemon: Instance, name: str, called: str, text: str) -> Path:
    path = daemon.devices / f"{name}.toml.d" / f"{called}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# -- drop-ins


def test_a_drop_in_changes_some_keys_and_some_options(tmp_path: Path) -> None:
    folder = tmp_path / "devices.d"
    (folder / "one.toml.d").mkdir(parents=True)
    (folder / "one.toml").write_text('device = "probe"\nrestart = "no"\noptions = { mood = "good", pace = 1 }')
    (folder / "one.toml.d/10-a.toml").write_text("autostart = false\noptions.pace = 2")
    (folder / "one.toml.d/20-b.toml").write_text("[options]\npace = 3")
    device = load(Places.of(tmp_path, tmp_path)).devices["one"]
    assert (device.restart, device.autostart, device.options) == ("no", False, {"mood": "good", "pace": 3})


def test_drop_ins_are_found_in_every_folder_overridden_and_masked(tmp_path: Path) -> None:
    high, low = tmp_path / "high", tmp_path / "low"
    for folder, names in ((high, ("b", "c")), (low, ("a", "b", "c"))):
        (folder / "devices.d/one.toml.d").mkdir(parents=True)
        for name in names:
            (folder / f"devices.d/one.toml.d/{name}.toml").write_text("autostart = false")
    (high / "devices.d/one.toml.d/c.toml").write_text("")
    places = Places((high, low), (), tmp_path)
    assert drop_ins(places, "one") == [low / "devices.d/one.toml.d/a.toml", high / "devices.d/one.toml.d/b.toml"]


def test_an_error_in_a_drop_in_names_it_and_hurts_no_other_device(daemon: Instance) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    path = drop_in(daemon, name, "typo", "optons.pace = 2")
    assert daemon.reload()["failed"][name] == f"{path}:1: unknown key optons (did you mean options?)"
    assert daemon.pid(name) == pid


def test_a_drop_in_is_picked_up_by_a_reload(daemon: Instance) -> None:
    name = daemon.add()
    path = drop_in(daemon, name, "more", "options.pace = 2")
    assert daemon.reload()["restarted"] == [name]
    path.unlink()
    assert daemon.reload()["restarted"] == [name]


# -- enable and disable


def test_a_disabled_device_stops_and_nothing_starts_it_before_it_is_enabled(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    assert run("disable", name) == (0, "", "")
    assert (daemon.describe(name)["state"], daemon.socket(name).exists()) == ("disabled", False)
    for command in ("start", "restart"):
        assert run(command, name) == (1, "", f"bellwire: {name} is disabled\n  bellwire enable {name}\n")
    assert run("reload") == (0, "nothing has changed\n", "")
    assert run("disable", name) == (0, "", "")
    assert daemon.describe(name)["state"] == "disabled"
    assert run("enable", name) == (0, "", "")
    assert daemon.describe(name)["state"] == "running"
    assert not (daemon.devices / f"{name}.toml.d").exists()


def test_patterns_and_all_are_devices_that_have_a_file(daemon: Instance, run: Run) -> None:
    for name in ("vm1-disk", "vm1-net"):
        daemon.configure(name)
    daemon.reload()
    assert run("disable", "vm1-*") == (0, "", "")
    assert [daemon.describe(name)["state"] for name in ("vm1-disk", "vm1-net", "steady")] == [
        "disabled", "disabled", "running",
    ]  # fmt: skip
    assert run("enable", "--all") == (0, "", "")
    assert [daemon.describe(name)["state"] for name in ("vm1-disk", "vm1-net")] == ["running", "running"]
    with pytest.raises(SystemExit, match="2"):
        run("disable")


def test_a_device_stays_disabled_when_the_daemon_is_started_anew(
    instance: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    instance.configure("one")
    with instance:
        assert main(["disable", "one", *instance.places]) == 0
    with instance:
        assert instance.describe("one")["state"] == "disabled"
        assert not instance.socket("one").exists()


def test_without_a_daemon_the_files_are_changed_all_the_same(instance: Instance) -> None:
    instance.configure("one")
    assert main(["disable", "one", *instance.places]) == 0
    assert not load(Places.of(instance.config)).devices["one"].enabled
    assert main(["enable", "one", *instance.places]) == 0
    assert load(Places.of(instance.config)).devices["one"].enabled


def test_enable_overrides_whatever_says_that_a_device_is_not(daemon: Instance, run: Run) -> None:
    daemon.configure("off", 'device = "probe"\nenabled = false')
    daemon.reload()
    assert daemon.describe("off")["state"] == "disabled"
    assert run("enable", "off") == (0, "", "")
    assert daemon.describe("off")["state"] == "running"
    assert run("disable", "off") == (0, "", "")
    assert daemon.describe("off")["state"] == "disabled"


BROKEN = ["device = ", 'device = "probe"\nmood = 1', "autostart = true"]


@pytest.mark.parametrize("broken", BROKEN, ids=["no TOML", "an unknown key", "no device"])
def test_a_device_whose_file_cannot_be_used_can_be_disabled(broken: str, daemon: Instance, run: Run) -> None:
    name = daemon.add()
    good = (daemon.devices / f"{name}.toml").read_text()
    (daemon.devices / f"{name}.toml").write_text(broken)
    assert run("disable", name) == (0, "", "")
    assert (daemon.describe(name)["state"], daemon.socket(name).exists()) == ("disabled", False)
    assert run("reload") == (0, "nothing has changed\n", "")
    status, _, error = run("enable", name)
    assert (status, str(daemon.devices / f"{name}.toml") in error) == (1, True)
    (daemon.devices / f"{name}.toml").write_text(good)
    assert run("enable", name) == (0, "", "")
    assert daemon.describe(name)["state"] == "running"


def test_a_device_that_never_had_a_usable_file_can_be_disabled(daemon: Instance, run: Run) -> None:
    def state() -> str:
        return next(str(each["state"]) for each in daemon.call("List")["devices"] if each["name"] == "broken")

    daemon.configure("broken", BAD)
    daemon.reload()
    assert state() == "failed"
    assert run("disable", "broken") == (0, "", "")
    assert state() == "disabled"


def test_without_a_daemon_a_device_with_a_broken_file_can_be_disabled(instance: Instance) -> None:
    instance.configure("one", BAD)
    assert main(["disable", "one", *instance.places]) == 0
    assert load(Places.of(instance.config)).disabled == {"one"}


def test_the_daemon_itself_says_where_its_configuration_is(
    daemon: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    name = daemon.add()
    assert main(["disable", name, "--runtime-dir", str(daemon.runtime)]) == 0
    assert daemon.describe(name)["state"] == "disabled"


@pytest.mark.parametrize("command", ["enable", "disable", "edit", "cat-config"])
def test_a_name_without_a_file_is_an_error(run: Run, command: str) -> None:
    assert run(command, "stedy") == (
        1, "", "bellwire: there is no file for a device 'stedy'\n  did you mean steady?\n",
    )  # fmt: skip


def test_what_is_written_can_be_read_by_a_daemon_of_another_user(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    before = os.umask(0o077)
    try:
        assert run("disable", name)[0] == 0
    finally:
        os.umask(before)
    folder = daemon.devices / f"{name}.toml.d"
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o755, 0o644]


def test_cat_config_shows_what_the_daemon_reads(daemon: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat-config", "steady", "--runtime-dir", str(daemon.runtime)]) == 0
    assert capsys.readouterr().out.startswith(f"# {daemon.devices}/steady.toml\n")


# -- edit


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What $EDITOR writes into the file that it is given; the file as it was shown is beside it."""
    text = tmp_path / "text"
    script = tmp_path / "my editor.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        f"text, shown = pathlib.Path({str(text)!r}), {str(tmp_path / 'shown')!r}\n"
        "shutil.copy(sys.argv[1], shown)\n"
        "sys.exit(7) if not text.exists() else shutil.copy(text, sys.argv[1])\n"
    )
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {shlex.quote(str(script))}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return text


def test_what_is_edited_counts_at_once(daemon: Instance, run: Run, editor: Path) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    editor.write_text("[options]\npace = 7\n# ---- nothing counts from here on ----\npace = 9\n")
    over = daemon.devices / f"{name}.toml.d/override.toml"
    assert run("edit", name) == (0, f"{over}: it counts\n", "")
    assert over.read_text() == "[options]\npace = 7\n"
    assert over.stat().st_mode & 0o777 == 0o644
    assert daemon.pid(name) != pid
    shown = (editor.parent / "shown").read_text()
    assert '# device = "probe"' in shown
    assert run("edit", name)[1] == f"{over}: nothing has changed\n"
    assert (editor.parent / "shown").read_text().startswith("[options]\npace = 7\n")
    editor.write_text("# nothing any more\n")
    assert run("edit", name)[0] == 0
    assert not over.parent.exists()
    assert not list(editor.parent.glob("bellwire-*"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[options\n", "not TOML"),
        ("# caf\udce9\n", "not TOML"),  # in Latin-1
        ("options.pase = 1\n", "probe has no option pase: did you mean pace?"),
        ('device = "prope"\n', "there is no device 'prope'"),
        ("restart = 3\n", "expected on-failure or always or no"),
    ],
)
def test_a_bad_edit_leaves_what_was_and_keeps_the_text(
    daemon: Instance, run: Run, editor: Path, text: str, why: str
) -> None:
    name = daemon.add()
    over = drop_in(daemon, name, "override", "options.pace = 5\n")
    daemon.reload()
    pid = daemon.pid(name)
    editor.write_text(text, errors="surrogateescape")
    status, out, err = run("edit", name)
    assert (status, out) == (1, "")
    assert why in err
    assert "nothing has changed; what you wrote is in " in err
    assert Path(err.rpartition(" ")[2].strip()).read_text(errors="surrogateescape") == text
    assert over.read_text() == "options.pace = 5\n"
    assert name in daemon.reload()["unchanged"]
    assert daemon.pid(name) == pid


def test_an_edit_that_the_device_refuses_at_its_start_is_taken_back(daemon: Instance, run: Run, editor: Path) -> None:
    """The daemon tries it, in a process of its own."""
    name = daemon.add('device = "virtio-blk"\noptions.size = "1M"')
    editor.write_text("options.queues = 99\n")
    status, _, err = run("edit", name)
    assert (status, "99" in err) == (1, True)
    assert not (daemon.devices / f"{name}.toml.d").exists()
    assert daemon.describe(name)["state"] == "running"


def test_an_editor_that_fails_changes_nothing(daemon: Instance, run: Run, editor: Path) -> None:
    name = daemon.add()
    status, _, err = run("edit", name)
    assert (status, "ended with status 7" in err) == (1, True)
    assert not (daemon.devices / f"{name}.toml.d").exists()


def test_where_there_is_no_editor_that_is_said(run: Run, monkeypatch: pytest.MonkeyPatch, daemon: Instance) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "")
    monkeypatch.setattr("bellwired.commands.edit.USUAL", ())
    assert "there is no editor: set EDITOR" in run("edit", "steady")[2]


# -- check and cat-config


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "devices.d/one.toml.d").mkdir(parents=True)
    shutil.copytree(PLUGINS, tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "devices.d/one.toml").write_text('device = "probe"\n\n[options]\npace = 4\nmood = "good"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("mine.toml", 'device = "probe"', ""),
        ("mine.toml", 'device = "./here.py"', ""),
        ("bellwired.toml", "ping-interval = 3", ""),
        ("mine.toml", "device = 1", "mine.toml:1: device = 1: Expected str, got int"),
        ("mine.toml", 'device = "probe"\noptions.pase = 3', "mine.toml: probe has no option pase: did you mean pace?"),
        ("mine.toml", 'device = "./gone.py"', "gone.py: no such file"),
        ("bellwired.toml", "ping-intervall = 3", "unknown key ping-intervall"),
        ("bellwired.toml", 'metrics = "here"', "write unix:PATH or ADDRESS:PORT"),
        ("mine.conf", 'device = "probe"', "mine.conf: a device's file is called NAME.toml"),
        ("two words.toml", 'device = "probe"', "two words.toml: a device's file is called NAME.toml"),
    ],
)
def test_check_says_what_is_wrong_with_a_file_before_it_counts(
    files: Path, tmp_path: Path, name: str, text: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(PLUGINS / "probe.py", elsewhere / "here.py")
    (elsewhere / name).write_text(text)
    assert main(["check", str(elsewhere / name), "--config-dir", str(files)]) == bool(error)
    said = capsys.readouterr()
    assert said.out == ""
    assert error in said.err
    assert bool(said.err) == bool(error)


def test_check_without_a_file_checks_those_in_effect(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config-dir", str(files)]) == 0
    (files / "bellwired.toml").write_text("ping-timeout = 0\npong = 1\n")
    (files / "devices.d/one.toml").write_text('device = "probe"\noptions.pase = 3\n')
    assert main(["check", "--config-dir", str(files)]) == 1
    said = capsys.readouterr().err
    assert all(
        text in said for text in ("bellwired.toml:1: ping-timeout", "bellwired.toml:2: unknown key", "no option")
    )


def test_check_need_not_import_plugins(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "plugins/probe.py").write_text("raise SystemExit\n")
    assert main(["check", "--no-import", "--config-dir", str(files)]) == 0
    assert main(["check", "--config-dir", str(files)]) == 1
    assert "SystemExit" in capsys.readouterr().err


def test_check_reads_the_drop_ins_beside_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "devices.d/one.toml.d/a.toml").write_text("mode = 3")
    assert main(["check", str(files / "devices.d/one.toml"), "--config-dir", str(files), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        str(files / "devices.d/one.toml"): f"{files}/devices.d/one.toml.d/a.toml:1: mode = 3: Expected str, got int"
    }


def test_cat_config_of_one_device_says_where_each_line_comes_from(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_file, over = files / "devices.d/one.toml", files / "devices.d/one.toml.d/a.toml"
    over.write_text('# why\noptions.pace = 7\nrestart = "no"\n')
    assert main(["cat-config", "one", "--config-dir", str(files)]) == 0
    assert capsys.readouterr().out == (
        f"# {main_file}\n{main_file.read_text()}\n# {over}\n{over.read_text()}\n"
        "# what counts, and where it comes from\n"
        f'device = "probe"       # {main_file}:1\n'
        f"options.pace = 7       # {over}:2\n"
        f'options.mood = "good"  # {main_file}:5\n'
        f'restart = "no"         # {over}:3\n'
    )
    assert main(["cat-config", "one", "--config-dir", str(files), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == [str(main_file), str(over)]
    assert shown["keys"]["options.pace"] == {"value": 7, "file": str(over), "line": 2}


def test_cat_config_of_one_device_ends_with_status_1_where_it_cannot_be_used(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "devices.d/one.toml.d/a.toml").write_text("options.pase = 7\n")
    assert main(["cat-config", "one", "--config-dir", str(files)]) == 1
    said = capsys.readouterr()
    assert "options.pase = 7" in said.out
    assert "probe has no option pase" in said.err


def test_cat_config_of_all_has_the_drop_ins_too(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "devices.d/one.toml.d/a.toml").write_text("options.pace = 7\n")
    assert main(["cat-config", "--config-dir", str(files)]) == 0
    assert f"# {files}/devices.d/one.toml.d/a.toml\noptions.pace = 7\n" in capsys.readouterr().out
