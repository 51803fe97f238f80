"""The command line of ``bellwire boot``: what its words mean, before anything is started."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwired.commands import boot, boot_devices, boot_prepare, complaints
from bellwired.commands.boot_devices import call, share_filters, share_out
from bellwired.commands.cli import main, parser
from bellwired.errors import CommandError
from bellwired.guest.errors import MachineError
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import Share
from bellwired.guest.served import Served
from bellwired.places import Places
from daemon.commands import line, started

PLACES = Places.of(runtime_dir=Path("/nowhere"))


def parse(*words: str) -> Any:
    return parser().parse_args(["boot", *words])


def test_devices_and_flags_may_be_mixed_and_the_command_stands_behind_dashes() -> None:
    given = parse("nvme", "--share", ".", "./copier.py", "--module", "copier.ko", "--", "ls", "-l", "--", "x")
    assert given.devices == ["nvme", "./copier.py"]
    assert (given.shares, given.modules) == ([Path()], ["copier.ko"])
    assert given.words == ["ls", "-l", "--", "x"]


def test_without_dashes_there_is_no_command() -> None:
    given = parse("nvme")
    assert (given.devices, given.words) == (["nvme"], [])


def test_a_flag_that_there_is_not_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse("nvme", "--shaer", "./copier.py")
    assert "unrecognized arguments: --shaer; did you mean --share?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--memory", "64"), "expected MiB"),
        (("--memory", "2T"), "expected MiB"),
        (("--cpus", "0"), "expected 1 to 255"),
        (("--timeout", "0"), "expected seconds"),
    ],
)
def test_a_size_that_no_machine_has_is_refused(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    assert problem in capsys.readouterr().err


def test_more_memory_than_this_machine_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 << 18}.__getitem__)
    assert parse("--memory", "2G").memory == 2048
    with pytest.raises(SystemExit, match="2"):
        parse("--memory", "3G")
    assert "'3G': this machine itself has 2048 MiB" in capsys.readouterr().err


def test_devices_are_called_by_their_kind_or_file_and_numbered_if_they_are_the_same() -> None:
    words = ["nvme", "./copier.py", "../other/copier.py", "mine.py:Fast", "./folder/", "/x/ä.py"]
    assert call(words) == dict(zip(["nvme", "copier", "copier-2", "Fast", "folder", "device"], words, strict=True))


def test_an_option_is_for_the_device_that_it_names_or_the_only_one() -> None:
    assert share_out(["size=1M", "nvme.serial=a.b=c"], ["nvme"]) == {"nvme": ["size=1M", "serial=a.b=c"]}
    assert share_out(["copier.rate=1"], ["nvme", "copier"]) == {"nvme": [], "copier": ["rate=1"]}


@pytest.mark.parametrize(
    ("option", "names", "hint"),
    [
        ("size", ["nvme"], ""),
        ("size=1", ["nvme", "edu"], "begin with one of nvme., edu."),
        ("edu.x=1", ["nvme"], "begin with one of nvme."),
        ("size=1", [], "name a device first"),
    ],
)
def test_an_option_of_no_known_device_is_refused(option: str, names: list[str], hint: str) -> None:
    with pytest.raises(CommandError, match=f"-o {option}") as caught:
        share_out([option], names)
    assert caught.value.hint == hint


def test_filters_and_faults_are_for_the_device_that_they_name_or_the_only_one() -> None:
    assert share_filters("--filter", ["nvme.delay:read=1.5s", "trace"], ["nvme"]) == {
        "nvme": ["delay:read=1.5s", "trace"]
    }
    both = ["nvme", "copier"]
    assert share_filters("--fault", ["copier../my.toml"], both) == {"nvme": [], "copier": ["./my.toml"]}


@pytest.mark.parametrize(
    ("names", "hint"), [(["nvme", "edu"], "begin with one of nvme., edu."), ([], "name a device first")]
)
def test_a_filter_before_no_known_device_is_refused(names: list[str], hint: str) -> None:
    with pytest.raises(CommandError, match="before which device") as caught:
        share_filters("--filter", ["delay:read=1.5s"], names)
    assert caught.value.hint == hint


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "device.sock"))
        yield tmp_path / "device.sock"


def test_a_word_is_a_socket_or_a_kind_or_a_file(listening: Path) -> None:
    assert boot_devices.running(str(listening), PLACES) == listening
    assert boot_devices.running("nvme", PLACES) is None
    assert boot_devices.running(str(listening.with_name("mine.py")), PLACES) is None


@pytest.mark.daemon
def test_a_word_is_the_name_of_a_device_that_runs(tmp_path: Path) -> None:
    path, runtime = tmp_path / "device.sock", tmp_path / "run"
    runtime.mkdir(mode=0o755)
    words = ["run", "edu", "--name", "mine", "--socket-path", str(path), "--runtime-dir", str(runtime)]
    with started(*words) as process:
        line(process)
        assert boot_devices.running("mine", Places.of(runtime_dir=runtime)) == path


def test_a_word_that_is_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(CommandError, match="there is no device 'nmve'") as caught:
        boot_devices.running("nmve", PLACES)
    assert "did you mean nvme?" in caught.value.hint


def test_devices_behind_root_ports_have_one_each_and_six_are_too_many(tmp_path: Path) -> None:
    for name in ("edu", "card.0", "card.1"):
        (tmp_path / name).touch()
    plugged = boot_devices.plug({name: tmp_path / name for name in ("edu", "card")}, root_ports=True)
    assert [(each.socket.name, each.properties["bus"], each.properties["addr"]) for each in plugged] == [
        ("edu", "bellwire-port0", "0.0"),
        ("card.0", "bellwire-port1", "0.0"),
        ("card.1", "bellwire-port1", "0.1"),
    ]
    assert not any(each.id for each in plugged), "QEMU takes fewer names than there are files"
    with (
        Served(lambda name, text: None) as served,
        pytest.raises(CommandError, match=r"6 devices, .* has 5 root ports"),
    ):
        boot_devices.start(parse(*["edu"] * 6, "--root-port"), served)


def test_the_current_folder_is_shared_where_the_guest_would_not_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Share(tmp_path, str(tmp_path), writable=False)
    assert boot._shares(parse("nvme")) == []
    assert boot._shares(parse("nvme", "--minimal")) == [here]
    writable = Share(tmp_path, str(tmp_path), writable=True)
    assert boot._shares(parse("nvme", "--minimal", "--share", ".")) == [writable]
    assert boot._shares(parse("nvme", "--share", str(tmp_path), "--snapshot")) == [here]


def test_a_link_to_a_folder_is_followed_before_the_guest_could_do_so(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    target = Share(tmp_path / "target", str(tmp_path / "target"), writable=True)
    assert boot._shares(parse("--share", str(tmp_path / "link"))) == [target]


@pytest.mark.parametrize("place", ["/", "/run", "/proc", "/sys/kernel", "/proc/sys/../net", "/dev"])
def test_what_a_guest_must_have_of_its_own_cannot_be_shared(place: str) -> None:
    with pytest.raises(MachineError, match=r" cannot be shared at /\S*, which is the guest's own"):
        boot._shares(parse("--share", place))


def test_a_current_folder_that_the_guest_has_of_its_own_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc/sys")
    assert boot._shares(parse("nvme")) == []


def test_a_folder_that_is_not_there_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"--share .*nowhere: no such folder"):
        boot._shares(parse("--share", str(tmp_path / "nowhere")))


def test_a_failure_before_the_guest_runs_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--kernel", "/nowhere/bzImage", "--", "true"]) == boot.FAILED
    assert "/nowhere/bzImage: no such kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no module is named"),
        ("copier.ko 'debug=1", "a quotation mark is not closed"),
        ("nowhere.ko", "--module nowhere.ko: no such file"),
        ("./nowhere", "--module ./nowhere: no such file"),
        ("nowhere", "Linux 6.1 has no module nowhere"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_told_before_the_boot(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(CommandError, match=re.escape(problem)):
        boot_prepare.modules([text], Kernel(tmp_path / "bzImage", "6.1", tmp_path))


def test_a_module_is_a_file_or_one_of_the_kernels_own_with_its_parameters(tmp_path: Path) -> None:
    own = tmp_path / "own.ko"
    own.touch()
    (tmp_path / "modules.builtin").write_text("kernel/lib/built_in.ko\n")
    kernel = Kernel(tmp_path / "bzImage", "6.1", tmp_path)
    found = boot_prepare.modules([f"{own} debug=1 name='a b'", "own", "built-in"], kernel)
    assert found == [[str(own), "debug=1", "name=a b"], ["own"], ["built-in"]]


def test_a_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"nowhere.sock: no such socket"):
        boot_devices.running(str(tmp_path / "nowhere.sock"), PLACES)


def test_a_console_that_cannot_be_written_is_a_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--console", "/nowhere/console", "--", "true"]) == boot.FAILED
    assert "/nowhere/console: No such file or directory" in capsys.readouterr().err


def test_the_log_of_a_device_that_fails_is_shown_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    complaints.error_with_log(MachineError("the device x has ended:\nfirst\x1b\nsecond", "look there"))
    assert capsys.readouterr().err == ("bellwire: the device x has ended:\n  first\\x1b\n  second\n  look there\n")
