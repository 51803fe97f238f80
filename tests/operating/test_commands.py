"""``bellwire``'s commands for a daemon: what they print, and their exit status."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bellwired.commands import control_client
from bellwired.commands.cli import MODULES, main, parser
from bellwired.manager.main import main as bellwired
from bellwired.release import release
from operating.conftest import Run
from operating.instance import HANG, PLUGINS, Instance, connect, write


def as_json(run: Run, *words: str) -> Any:
    status, out, _ = run(*words, "--json")
    assert status == 0
    return json.loads(out)


# -- looking


def test_list_is_a_table_with_a_line_for_each_device(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    status, out, _ = run("list")
    assert status == 0
    assert re.search(r"^ *name +device +state +for +client +memory +restarts *$", out, re.MULTILINE)
    assert re.search(rf"^ *{name} +probe +stopped .* - +- +0 *$", out, re.MULTILINE)
    assert re.search(r"^ *steady +bell +running .* MiB +0 *$", out, re.MULTILINE)


def test_list_in_json_has_every_device_with_its_state(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    assert {each["name"]: each["state"] for each in as_json(run, "list")} == {"steady": "running", name: "running"}


def test_status_says_state_since_when_process_memory_client_and_what_happened(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)):
        status, out, _ = run("status", name)
    assert status == 0
    facts = dict(re.findall(r"^ *(\w+): (.*)$", out, re.MULTILINE))
    assert facts["Device"] == f"{name} (probe)"
    assert facts["State"].startswith("running since 2")
    assert facts["Process"].isdigit()
    assert facts["Memory"].endswith("MiB")
    assert facts["Client"].startswith(f"process {os.getpid()}, user {os.getuid()}")
    assert f"client connected: process {os.getpid()}" in out


def test_status_3_means_that_a_device_does_not_run(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    assert run("status", name)[0] == 3
    assert run("status", name, "--json")[0] == 3
    assert run("status", "steady", "--json")[0] == 0


def test_regs_shows_each_register_by_name(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"')
    status, out, _ = run("regs", name)
    assert status == 0
    assert re.search(r"^ *ident +BAR0\+0x000 +4 +constant +0x010000ed", out, re.MULTILINE)
    assert {
        "name": "ident",
        "bar": 0,
        "offset": 0,
        "size": 4,
        "access": "constant",
        "value": 0x10000ED,
        "meaning": "",
    } in (as_json(run, "regs", name))


def test_libvirts_xml_passes_the_same_device_to_qemu_and_shares_memory(daemon: Instance, run: Run) -> None:
    domain = ET.fromstring(run("qemu-args", "steady", "--libvirt")[1])
    assert domain.find("memoryBacking/access[@mode='shared']") is not None
    words = [each.get("value", "") for each in domain.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
    assert words[0] == "-device"
    assert words[1] in run("qemu-args", "steady")[1]
    assert json.loads(words[1])["socket"] == {"path": str(daemon.socket("steady")), "type": "unix"}
    assert json.loads(run("qemu-args", "steady", "--libvirt", "--json")[1])["socket"] == str(daemon.socket("steady"))


def test_the_box_is_shown_in_a_line_and_explained_part_by_part(daemon: Instance, run: Run) -> None:
    assert re.search(r"^ +Box: .*system calls.*\(bellwire sandbox steady\)", run("status", "steady")[1], re.MULTILINE)
    status, out, _ = run("sandbox", "steady")
    assert status == 0
    assert re.search(r"^system calls: here: seccomp: \d+ are allowed", out, re.MULTILINE)
    parts = json.loads(run("sandbox", "steady", "--json")[1])["parts"]
    assert {part["state"] for part in parts} <= {"here", "missing", "off"}
    assert {"files", "system calls", "memory", "capabilities", "user"} <= {part["name"] for part in parts}


def test_qemu_args_attach_the_devices_socket(daemon: Instance, run: Run) -> None:
    assert str(daemon.socket("steady")) in run("qemu-args", "steady")[1]
    assert as_json(run, "qemu-args", "steady")["socket"] == str(daemon.socket("steady"))


def test_monitor_prints_events_until_interrupted(daemon: Instance) -> None:
    name = daemon.add()
    words = [sys.executable, "-m", "bellwired", "monitor", name, "--json", *daemon.places]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0.1)[0]:
            daemon.call("Restart", name=name)
        event = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert event["device"] == name
    assert event["kind"] in ("stopped", "started", "statistics")


# -- changing


def test_start_stop_and_restart_do_so_and_say_nothing(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    assert run("stop", name) == (0, "", "")
    assert daemon.describe(name)["state"] == "stopped"
    assert run("start", name) == (0, "", "")
    pid = daemon.pid(name)
    assert run("restart", name) == (0, "", "")
    assert daemon.pid(name) not in (0, pid)
    assert run("reset", name) == (0, "", "")


def test_set_changes_options_of_a_running_device(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    assert run("set", name, "pace=7", "pace=8") == (0, "", "")
    status, _, err = run("set", name, "mood")
    assert (status, err) == (1, "bellwire: mood: expected KEY=VALUE\n")
    status, _, err = run("set", name, "mood=good")
    assert status == 1
    assert "is for the start" in err


def test_several_devices_are_tried_each_whatever_became_of_the_one_before(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    status, _, err = run("stop", "nope", name)
    assert status == 1
    assert "there is no device 'nope'" in err
    assert daemon.describe(name)["state"] == "stopped"
    status, out, _ = run("start", "nope", name, "--json")
    assert status == 1
    assert json.loads(out) == {"nope": "there is no device 'nope'", name: ""}


def test_reload_says_what_it_has_done(daemon: Instance, run: Run) -> None:
    daemon.configure("extra")
    assert run("reload") == (0, "started: extra\n", "")
    assert run("reload") == (0, "nothing has changed\n", "")
    daemon.configure("extra", "device = 1")
    status, _, err = run("reload")
    assert (status, "Expected str, got int" in err) == (1, True)
    daemon.remove("extra")
    assert as_json(run, "reload")["stopped"] == ["extra"]


def test_reload_says_what_is_wrong_with_each_file_and_what_may_be_meant(daemon: Instance, run: Run) -> None:
    daemon.configure("one", "device = 1")
    daemon.configure("two", 'device = "probe"\nrestrat = "no"')
    status, _, err = run("reload")
    one, two = err.splitlines()
    assert status == 1
    assert one.endswith("one.toml:1: device = 1: Expected str, got int")
    assert two.endswith("two.toml:2: unknown key restrat (did you mean restart?)")


def test_status_says_which_daemon_it_is_and_what_does_not_work_of_it(daemon: Instance, run: Run) -> None:
    status, out, err = run("status")
    assert out.startswith(
        f"     Daemon: the daemon ({release()}, process {daemon.process.pid}) at {daemon.runtime}/control"
    )
    assert (status, err) == (0, "")
    good = (daemon.config / "bellwired.toml").read_text()
    daemon.settings("pong = 1")
    run("reload")
    assert "bellwire: bellwired.toml: " in run("status")[2]
    assert "bellwired.toml:1: unknown key pong" in json.loads(run("status", "--json")[2])["error"]
    daemon.settings(good)
    run("reload")
    assert run("status")[2] == ""


def test_list_has_a_device_whose_file_cannot_be_used(daemon: Instance, run: Run) -> None:
    daemon.configure("typo", 'devise = "edu"')
    run("reload")
    assert re.search(r"^ *typo +- +failed", run("list")[1], re.MULTILINE)
    (listed,) = [each for each in as_json(run, "list") if each["name"] == "typo"]
    assert listed["error"].endswith("typo.toml:1: unknown key devise (did you mean device?)")


# -- what goes wrong


@pytest.mark.parametrize("command", ["status", "start", "stop", "restart", "reset", "regs", "monitor", "qemu-args"])
def test_an_unknown_device_is_status_1_and_a_line_that_names_those_there_are(run: Run, command: str) -> None:
    status, out, err = run(command, "nope")
    assert (status, out) == (1, "")
    assert err == "bellwire: there is no device 'nope'\n  there are: steady\n"


def test_where_no_daemon_runs_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--runtime-dir", str(tmp_path)]) == 1
    assert f"{tmp_path}/control: no daemon is running there" in capsys.readouterr().err


def test_a_user_without_a_daemon_is_told_of_the_systems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "SYSTEM_RUNTIME", tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "control"))
        listener.listen()
        assert main(["list", "--runtime-dir", str(tmp_path / "mine")]) == 1
    assert "  the system's daemon runs: --system asks it\n" in capsys.readouterr().err


def test_a_daemon_that_hangs_is_not_waited_for(daemon: Instance, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "PATIENCE", 0.2)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        status, _, err = run("list")
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert status == 1
    assert "the daemon does not answer" in err


def test_a_device_that_hangs_is_said_to(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, HANG, 1, posted=True)
        status, out, _ = run("status", name)
        assert (status, "running since" in out) == (0, True)
        os.kill(pid, signal.SIGKILL)
        events.until("taken-over", name)


@pytest.mark.parametrize("words", [["set"], ["nonsense"], ["list", "--nonsense"], ["start"]])
def test_a_mistake_on_the_command_line_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: bellwire" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statuss"], "bellwire: error: there is no command 'statuss'; did you mean status?"),
        (
            ["frobnicate"],
            "bellwire: error: there is no command 'frobnicate'; there are run, boot, fuzz-driver, vmm, demo, list",
        ),
        (["logs", "x", "--folow"], "bellwire logs: error: unrecognized arguments: --folow; did you mean --follow?"),
        (["list", "--nonsense"], "bellwire list: error: unrecognized arguments: --nonsense\n"),
    ],
)
def test_a_misspelt_command_or_flag_is_told_with_what_may_be_meant(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err


# -- what needs no daemon


@pytest.mark.parametrize(("command", "name"), [(main, "bellwire"), (bellwired, "bellwired")])
def test_both_commands_tell_their_version(
    command: Callable[[list[str]], int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        command(["--version"])
    assert capsys.readouterr().out == f"{name} {release()}\n"


def test_every_command_is_declared_by_the_module_that_is_loaded_for_it_alone() -> None:
    assert list(parser().commands) == list(MODULES)
    for name, module in MODULES.items():
        assert list(parser(name).commands) == [other for other in MODULES if MODULES[other] == module]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "devices.d").mkdir()
    (tmp_path / "plugins").mkdir()
    shutil.copyfile(PLUGINS / "probe.py", tmp_path / "plugins/probe.py")
    (tmp_path / "bellwired.toml").write_text("ping-interval = 7\n")
    (tmp_path / "devices.d/one.toml").write_text('device = "probe"\noptions.pace = 4\n')
    return tmp_path


def test_cat_config_shows_each_file_with_its_path(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat-config", "--config-dir", str(files)]) == 0
    assert capsys.readouterr().out == (
        f"# {files}/bellwired.toml\nping-interval = 7\n\n"
        f'# {files}/devices.d/one.toml\ndevice = "probe"\noptions.pace = 4\n\n'
    )


def test_cat_config_in_json_has_every_key_with_its_value(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat-config", "--config-dir", str(files), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["daemon"]["ping-interval"] == 7
    assert shown["devices"]["one"]["options"] == {"pace": 4}
    assert shown["devices"]["one"]["restart"] == "on-failure"
    assert shown["errors"] == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("device = 1", "one.toml:1: device = 1: Expected str"),
        ('device = "prope"', "one.toml: there is no device 'prope'"),
        ('device = "probe"\noptions.pase = 4', "one.toml: probe has no option pase: did you mean pace?"),
    ],
)
def test_cat_config_ends_with_status_1_where_a_file_cannot_be_used(
    files: Path, text: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "devices.d/one.toml").write_text(text)
    assert main(["cat-config", "--config-dir", str(files)]) == 1
    assert error in capsys.readouterr().err


def test_cat_config_shows_what_can_be_read_and_says_what_is_wrong_with_each_file(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "devices.d/gone.toml").symlink_to("nowhere")
    (files / "devices.d/two.toml").write_text("devise = 1\n")
    assert main(["cat-config", "--config-dir", str(files)]) == 1
    shown = capsys.readouterr()
    assert f"# {files}/devices.d/gone.toml\n\n# {files}/devices.d/one.toml\ndevice" in shown.out
    assert shown.err == (
        f"bellwire: {files}/devices.d/gone.toml: No such file or directory\n"
        f"bellwire: {files}/devices.d/two.toml:1: unknown key devise\n  did you mean device?\n"
    )


def test_cat_config_trusts_no_file_that_the_daemon_would_not(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = files / "plugins/probe.py"
    path.chmod(0o666)
    (files / "devices.d/one.toml").write_text(f'device = "{path}"\n')
    assert main(["cat-config", "--config-dir", str(files)]) == 1
    assert f"{path}: others than its owner may write it" in capsys.readouterr().err


def test_plugins_lists_what_can_be_run_and_why_something_cannot(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "plugins/broken.py").write_text("1 / 0")
    assert main(["plugins", "--config-dir", str(files)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ *edu +bundled", out, re.MULTILINE)
    assert "ZeroDivisionError" in out
    assert main(["plugins", "--config-dir", str(files), "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["probe"]["error"] == ""
    assert "division by zero" in listed["broken"]["error"]


def test_what_new_writes_passes_its_own_tests_and_can_be_hosted(
    daemon: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "my_nic", "--directory", str(tmp_path)]) == 0
    assert "Try it: bellwire run" in capsys.readouterr().out
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null", "test_my_nic.py"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    shutil.copy(tmp_path / "my_nic.py", daemon.plugins)
    shutil.copy(tmp_path / "my_nic.toml", daemon.devices)
    assert daemon.reload()["started"] == ["my_nic"]


@pytest.mark.parametrize("name", ["My_nic", "my-nic", "class", "9p", ""])
def test_new_takes_no_name_that_python_would_not(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", name, "--directory", str(tmp_path)]) == 1
    assert "is no name for a device" in capsys.readouterr().err


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_nic.toml").write_text("mine")
    assert main(["new", "my_nic", "--directory", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["my_nic.toml"]


# -- shells and flags


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_is_one_that_the_shell_can_read(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert "qemu-args" in script
    assert "--runtime-dir" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    "command", ["list", "status", "start", "reload", "regs", "monitor", "cat-config", "plugins", "new"]
)
def test_every_command_for_a_daemon_takes_json_and_the_places(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--json", "--config-dir", "--runtime-dir"))
