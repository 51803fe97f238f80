"""The configuration files: what each key takes, and what an error says."""

from __future__ import annotations

import contextlib
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwired.errors import SettingsError
from bellwired.places import Places
from bellwired.settings import Daemon, Device, decode, load, plain, read, tolerant

DEVICE = {
    "device": "bell", "options": {"a": 1, "b": True, "c": 0.5, "d": "text"}, "socket": "/run/x", "mode": "0660",
    "owner": "ada", "group": "kvm", "restart": "always", "log-level": "debug", "autostart": False, "enabled": False,
    "io-fd-entry": 48, "dialect": "ratified", "busy-poll": 200,
    "max-maps": 100, "hello-timeout": 2.5, "hang-timeout": 3.0,
    "sandbox": ["sockets", "kcmp"],
    "sandbox-read": ["/srv/a"], "sandbox-write": ["/srv/b"], "user": "ada", "memory-max": "512M", "tasks-max": 64,
    "cpu-quota": "150%", "filter": [{"name": "delay", "read": "2ms"}, {"name": "trace", "keep": 100}],
}  # fmt: skip
DAEMON = {
    "control-group": "kvm", "metrics": "unix:/run/m", "metrics-mode": "0660", "metrics-group": "prom",
    "log-level": "error", "ping-interval": 1.5, "ping-timeout": 2.0, "start-timeout": 3.0, "restart-delay": 0.5,
    "restart-delay-max": 4.0, "restart-limit": 3, "restart-window": 60.0, "stop-timeout": 5.0,
    "worker-users": "200000-265535",
}  # fmt: skip


def test_a_device_takes_every_key() -> None:
    assert plain(decode(DEVICE, Device, "x")) == DEVICE


def test_the_daemon_takes_every_key() -> None:
    assert plain(decode(DAEMON, Daemon, "x")) == DAEMON


def test_a_device_needs_no_more_than_its_kind() -> None:
    device = decode({"device": "bell"}, Device, "x")
    assert (device.options, device.socket, device.mode, device.restart, device.autostart) == (
        {}, "", "0600", "on-failure", True,
    )  # fmt: skip


def test_a_whole_number_will_do_for_seconds() -> None:
    assert decode({"ping-interval": 5}, Daemon, "x").ping_interval == 5.0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "x: device is missing", ""),
        ("device = 3", "x: device = 3: Expected str, got int", ""),
        ('device = "bell"\nmod = "0600"', "x: unknown key mod", "did you mean mode?"),
        ('device = "bell"\nautosart = true', "x: unknown key autosart", "did you mean autostart?"),
        (
            'device = "bell"\nzzz = 1',
            "x: unknown key zzz",
            "there are autostart, busy-poll, cpu-quota, device, dialect, enabled, filter, group, hang-timeout",
        ),
        ('device = "bell"\nmode = "rw"', "x: mode = 'rw': Expected str matching regex", ""),
        ('device = "bell"\nmode = 384', "x: mode = 384: Expected str, got int", ""),
        ('device = "bell"\nrestart = "often"', "restart = 'often': expected on-failure or always or no", ""),
        ('device = "bell"\nlog-level = 3', "log-level = 3: expected debug or info or warning or error", ""),
        ('device = "bell"\nautostart = "yes"', "autostart = 'yes': Expected bool, got str", ""),
        ('device = "bell"\nmax-maps = 15', "max-maps = 15: Expected int >= 16", ""),
        ('device = "bell"\nio-fd-entry = 44', "io-fd-entry = 44: expected 40 or 48", ""),
        ('device = "bell"\ndialect = "draft"', "dialect = 'draft': expected ratified or draft-2021", ""),
        (
            'device = "bell"\nio-fd-entry = 48\ndialect = "draft-2021"',
            "io-fd-entry = 48: it goes with the ratified dialect, not draft-2021",
            "",
        ),
        ('device = "bell"\n[[filter]]\nread = "2ms"', "x: a [[filter]] has no name: expected name = ", ""),
        ('device = "bell"\nfilter = ["trace"]', "filter = ['trace']: Expected object, got str", ""),
        ('device = "bell"\nbusy-poll = 1001', "busy-poll = 1001: Expected int <= 1000", ""),
        ('device = "bell"\noptions = 1', "options = 1: Expected object, got int", ""),
        ('device = "bell"\noptions.list = [1]', "options = {'list': [1]}: Expected ", ""),
        ('device = "bell"\noptions.much = inf', "options = {'much': inf}: Expected a finite number", ""),
        ('device = "bell"\noptions.much = 99999999999999999999', "Expected a number of at most 64 bits", ""),
    ],
)
def test_an_error_in_a_devices_file_names_the_key_and_what_was_expected(text: str, message: str, hint: str) -> None:
    with pytest.raises(SettingsError) as error:
        decode(tomllib.loads(text), Device, "x")
    assert message in str(error.value)
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ping-interval = 0", "ping-interval = 0: Expected float >= 0.01"),
        ("stop-timeout = 1e9", "stop-timeout = 1000000000.0: Expected float <= 86400"),
        ("restart-limit = -1", "restart-limit = -1: Expected int >= 0"),
        ("restart-limit = 2.5", "restart-limit = 2.5: Expected int, got float"),
        ("ping-timeout = nan", "ping-timeout = nan: "),
    ],
)
def test_an_error_in_the_daemons_file_names_the_key_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        decode(tomllib.loads(text), Daemon, "x")
    assert message in str(error.value)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text("device = \n")
    with pytest.raises(SettingsError, match=f"^{path}:1: not TOML: Invalid value in column 10"):
        read(path, Device)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=f"^{path}: not TOML"):
        read(path, Device)
    with pytest.raises(SettingsError, match="No such file"):
        read(tmp_path / "two.toml", Device)


def folder(tmp_path: Path, **files: str) -> Places:
    (tmp_path / "devices.d").mkdir()
    for name, text in files.items():
        (tmp_path / "devices.d" / f"{name}.toml").write_text(text)
    return Places.of(tmp_path, tmp_path)


def test_one_bad_file_does_not_hurt_the_others(tmp_path: Path) -> None:
    settings = load(folder(tmp_path, good='device = "bell"', bad="device = 1"))
    assert list(settings.devices) == ["good"]
    assert list(settings.errors) == ["bad"]


def test_an_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text('device = "bell"\n\n[options]\na = [1]\n')
    with pytest.raises(SettingsError, match=f"^{path}:3: options = "):
        read(path, Device)
    path.write_text('# mode = 3\ndevice = "bell"\n "mode"= 3\n')
    with pytest.raises(SettingsError, match=f"^{path}:3: mode = 3"):
        read(path, Device)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = " + "[" * 5000, "nested too deeply"),
        ("x = " + "9" * 5000, "not TOML: "),
        ('device = "a\\u0000b"', "Expected text without NUL"),
        ("#" * (1 << 18) + "\n", "at most 262144 bytes"),
        ("a" + ".a" * 50000 + " = 1", "one.toml:1: a key is nested too deeply"),
        ('x = 1\ny = {"a"' + ".'a'" * 50000 + " = 1}", "one.toml:2: a key is nested too deeply"),
    ],
)
def test_a_file_that_would_break_a_parser_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "one.toml").write_text(content)
    with pytest.raises(SettingsError, match=message) as error:
        read(tmp_path / "one.toml", Device)
    assert len(str(error.value)) < 1000


def test_a_file_that_is_a_pipe_does_not_make_the_daemon_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.toml")
    with pytest.raises(SettingsError, match="it is a FIFO, expected a file"):
        read(tmp_path / "one.toml", Device)


@pytest.mark.parametrize(
    ("content", "message", "left"),
    [
        ("ping-interval = 7\nmetric = 1\n", ":2: unknown key metric", Daemon(ping_interval=7)),
        ("stop-timeout = 0\nping-interval = 7\n", ":1: stop-timeout = 0", Daemon(ping_interval=7)),
        ("ping-interval = \n", ":1: not TOML", Daemon()),
        ('control-group = ["x"]\n', ":1: control-group = ", Daemon()),
        ('metrics = "unix:/run/m"\nmetrics-mod = "0600"\n', ":2: unknown key metrics-mod", Daemon()),
    ],
)
def test_a_bad_key_of_the_daemons_file_has_its_default_and_the_others_count(
    tmp_path: Path, content: str, message: str, left: Daemon
) -> None:
    path = tmp_path / "bellwired.toml"
    path.write_text(content)
    daemon, (fault,) = tolerant(path)
    assert str(fault).startswith(f"{path}{message}")
    assert daemon == left


def test_no_default_lets_others_look() -> None:
    assert (Daemon().control_group, Daemon().metrics) == ("", "")


@pytest.mark.parametrize("name", ["two words", "-dash", "ü", "x" * 65])
def test_a_name_that_would_make_trouble_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    settings = load(folder(tmp_path, **{name: 'device = "bell"'}))
    assert not settings.devices
    assert "a device's name has letters" in str(settings.errors[name])


WORDS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*DEVICE, *DAEMON]) | WORDS, VALUES, max_size=4), st.booleans())
def test_whatever_is_in_a_file_it_is_decoded_or_refused(content: dict[str, Any], of_device: bool) -> None:
    with contextlib.suppress(SettingsError):
        decode(content, Device, "x") if of_device else decode(content, Daemon, "x")
