"""A user's own daemon, as ``bellwire install --user`` sets it up."""

from __future__ import annotations

import json
from subprocess import CompletedProcess

import pytest

from bed import PYTHON, Bed
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


def test_a_user_runs_a_daemon_without_root(systemd: Bed) -> None:
    systemd.run("useradd", "--create-home", f"--uid={UID}", "ada")
    systemd.unit(f"user-runtime-dir@{UID}.service.d/no-logind.conf", NO_LOGIND)
    systemd.start(f"user@{UID}.service")
    as_ada(systemd, PYTHON.replace("python", "bellwire"), "install", "--user")
    as_ada(systemd, "mkdir", "--parents", f"{HOME}/.config/bellwire/devices.d")
    as_ada(systemd, "sh", "-c", f"echo 'device = \"edu\"' > {HOME}/.config/bellwire/devices.d/mine.toml")

    as_ada(systemd, "systemctl", "--user", "daemon-reload")
    as_ada(systemd, "systemctl", "--user", "enable", "--now", *UNITS)
    unit = as_ada(systemd, "systemctl", "--user", "show", "--value", "--property=FragmentPath", UNITS[1]).stdout
    assert unit == f"{HOME}/.local/share/systemd/user/{UNITS[1]}\n"
    assert json.loads(as_ada(systemd, "bellwire", "status", "mine", "--json").stdout)["state"] == "running"
    with Client.connect(systemd.path(f"{RUNTIME}/bellwire/mine.sock")) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == EDU

    as_ada(systemd, "systemctl", "--user", "disable", "--now", *UNITS)
    as_ada(systemd, "bellwire", "uninstall", "--user")
    assert not systemd.path(f"{HOME}/.local").exists()
