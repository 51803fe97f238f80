"""A user's own daemon, as ``bellwire install --user`` sets it up."""

from __future__ import annotations

import json
from subprocess import CompletedProcess

import pytest

from bed import PATIENCE, PYTHON, Bed
from vfio_user import Client, RegionIndex

pytestmark = pytest.mark.systemd
EDU = bytes.fromhex("3412e811")
UID = "1234"
HOME = "/home/ada"
RUNTIME = f"/run/user/{UID}"
NO_LOGIND = f"""
[Service]
ExecStart=
ExecStart=install --directory --owner=ada --mode=700 {RUNTIME}
ExecStop=
"""
UNITS = ("bellwired.socket", "bellwired.service")


def as_ada(systemd: Bed, *words: str, check: bool = True) -> CompletedProcess[str]:
    places = [f"HOME={HOME}", f"XDG_RUNTIME_DIR={RUNTIME}", f"PATH={HOME}/.local/bin:/usr/bin:/bin"]
    return systemd.run("runuser", "--user=ada", "--", "env", *places, *words, check=check)


PLUGIN = """
from bellwire import Bar, PciDevice
class Mine(PciDevice, vendor=0x1234, device=0x5678, class_code=0x088000):
    mmio = Bar(0, size=4096)
    ident = mmio.reg(0x00, access="constant", reset=1)
"""


def write(systemd: Bed, path: str, content: str) -> None:
    as_ada(systemd, "sh", "-c", 'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0"', path, content)


def names(systemd: Bed, *words: str) -> list[str]:
    return [each["name"] for each in json.loads(as_ada(systemd, "bellwire", "list", "--json", *words).stdout)]


def names_of_root(systemd: Bed) -> list[str]:
    return [each["name"] for each in json.loads(systemd.run("bellwire", "list", "--json").stdout)]


def test_a_user_runs_a_daemon_beside_the_systems_and_each_has_its_own_world(systemd: Bed) -> None:
    systemd.path("/etc/bellwire/devices.d/common.toml").write_text('device = "bell"\n')
    systemd.start("bellwired.service")
    systemd.run("useradd", "--create-home", f"--uid={UID}", "ada")
    systemd.unit(f"user-runtime-dir@{UID}.service.d/no-logind.conf", NO_LOGIND)
    systemd.start(f"user@{UID}.service")
    as_ada(systemd, PYTHON.replace("python", "bellwire"), "install", "--user")
    write(systemd, f"{HOME}/.config/bellwire/devices.d/mine.toml", 'device = "edu"\n')
    write(systemd, f"{HOME}/.config/bellwire/devices.d/made.toml", 'device = "ada"\n')
    write(systemd, f"{HOME}/.config/bellwire/plugins/ada.py", PLUGIN)
    refused = as_ada(systemd, f"{HOME}/.local/bin/bellwire", "list", check=False)
    assert (refused.returncode, "/run/bellwire/control: you may not use it" in refused.stderr) == (1, True)

    as_ada(systemd, "systemctl", "--user", "daemon-reload")
    as_ada(systemd, "systemctl", "--user", "enable", "--now", *UNITS)
    unit = as_ada(systemd, "systemctl", "--user", "show", "--value", "--property=FragmentPath", UNITS[1]).stdout
    assert unit == f"{HOME}/.local/share/systemd/user/{UNITS[1]}\n"
    assert json.loads(as_ada(systemd, "bellwire", "status", "mine", "--json").stdout)["state"] == "running"
    with Client.connect(systemd.path(f"{RUNTIME}/bellwire/mine.sock"), timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == EDU
    with Client.connect(systemd.path(f"{RUNTIME}/bellwire/made.sock"), timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == bytes.fromhex("34127856")
    assert names(systemd) == ["made", "mine"]
    assert "Daemon: your own daemon" in as_ada(systemd, "bellwire", "status").stdout
    assert "your own daemon was asked; --system asks the system's" in (
        as_ada(systemd, "bellwire", "stop", "common", check=False).stderr
    )
    systemd.run("usermod", "--append", "--groups=bellwire", "ada")
    assert names(systemd, "--system") == ["common"]
    as_ada(systemd, "systemctl", "--user", "reload", UNITS[1])

    as_ada(systemd, "systemctl", "--user", "stop", *UNITS)
    assert names(systemd) == ["common"], "the system's is asked if their own does not run"
    as_ada(systemd, "systemctl", "--user", "start", UNITS[0])
    assert names(systemd) == ["made", "mine"], "the first command starts their own"

    as_ada(systemd, "systemctl", "--user", "start", "bellwire@bell.socket")
    with Client.connect(systemd.path(f"{RUNTIME}/bellwire/bell.sock"), timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == bytes.fromhex("341211be")
    as_ada(systemd, "systemctl", "--user", "stop", "bellwire@bell.socket", "bellwire@bell.service")

    as_ada(systemd, "systemctl", "--user", "disable", "--now", *UNITS)
    as_ada(systemd, "bellwire", "uninstall", "--user")
    assert not systemd.path(f"{HOME}/.local/bin").exists()
    assert names_of_root(systemd) == ["common"]
