"""One device without the daemon: bellwire@.socket starts bellwire@.service when the first client comes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bed import PATIENCE, PYTHON, Bed
from bellwired import messages
from vfio_user import Client, RegionIndex

pytestmark = pytest.mark.systemd
BELL = bytes.fromhex("341211be")
SOCKET = "/run/bellwire/bell.sock"
CLIENT = f"""
from vfio_user import Client, RegionIndex
with Client.connect("{SOCKET}", timeout={PATIENCE}) as client:
    print(client.read(RegionIndex.CONFIG, 0, 4).hex())
"""


@pytest.fixture
def bell(systemd: Bed) -> Iterator[Path]:
    """The socket of a device that does not run yet, as seen from outside."""
    systemd.start("bellwire@bell.socket")
    yield systemd.path(SOCKET)
    systemd.stop("bellwire@bell.socket", "bellwire@bell.service")
    assert not systemd.path(SOCKET).exists()


def test_the_first_client_starts_the_device(systemd: Bed, bell: Path) -> None:
    assert systemd.show("bellwire@bell.service", "ActiveState") == "inactive"
    with Client.connect(bell, timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == BELL
        assert systemd.show("bellwire@bell.service", "ActiveState") == "active"


def test_the_next_client_finds_it_running(systemd: Bed, bell: Path) -> None:
    for _ in range(2):
        with Client.connect(bell, timeout=PATIENCE) as client:
            assert client.read(RegionIndex.CONFIG, 0, 4) == BELL
    assert systemd.show("bellwire@bell.service", "NRestarts") == "0"


def test_a_device_that_has_crashed_starts_again_for_the_client_that_waits(systemd: Bed, bell: Path) -> None:
    with Client.connect(bell, timeout=PATIENCE) as client:
        client.device_info()
        systemd.systemctl("kill", "--signal=SIGSEGV", "bellwire@bell.service")
    with Client.connect(bell, timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == BELL


def test_the_journal_names_the_device_its_client_and_the_message(systemd: Bed, bell: Path) -> None:
    systemd.forget()
    with Client.connect(bell, timeout=PATIENCE) as client:
        client.device_info()
    came = systemd.heard(_SYSTEMD_UNIT="bellwire@bell.service", MESSAGE_ID=messages.CLIENT, BELLWIRE_DEVICE="bell")
    left = systemd.heard(_SYSTEMD_UNIT="bellwire@bell.service", MESSAGE_ID=messages.CLIENT_LEFT)
    assert came["MESSAGE"].startswith("bell: client connected: process")
    assert came["BELLWIRE_CLIENT"] == left["BELLWIRE_CLIENT"]
    entries = systemd.journal(_SYSTEMD_UNIT="bellwire@bell.service", SYSLOG_IDENTIFIER="bellwired")
    assert {entry["BELLWIRE_DEVICE"] for entry in entries} == {"bell"}
    assert all(entry["MESSAGE"].startswith(("bell: ", "[bell] ")) for entry in entries)


def test_the_device_runs_as_a_user_of_its_own(systemd: Bed, bell: Path) -> None:
    with Client.connect(bell, timeout=PATIENCE) as client:
        client.device_info()
        process = systemd.path(f"/proc/{systemd.show('bellwire@bell.service', 'MainPID')}")
        assert process.stat().st_uid >= 61184  # DynamicUser=
        assert "NoNewPrivs:\t1" in (process / "status").read_text()


def test_its_socket_is_for_root_and_the_group(systemd: Bed, bell: Path) -> None:
    assert stat.S_IMODE(bell.stat().st_mode) == 0o660
    assert systemd.run("stat", "--format=%U:%G", SOCKET).stdout == "root:bellwire\n"


def test_a_member_of_the_group_may_connect(systemd: Bed, bell: Path) -> None:
    member = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=bellwire")
    assert systemd.run(*member, PYTHON, "-c", CLIENT).stdout == f"{BELL.hex()}\n"


def test_others_may_not(systemd: Bed, bell: Path) -> None:
    other = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    refused = systemd.run(*other, PYTHON, "-c", CLIENT, check=False)
    assert refused.returncode
    assert "Permission denied" in refused.stderr


def test_stop_ends_it_cleanly_with_a_client(systemd: Bed, bell: Path) -> None:
    with Client.connect(bell, timeout=PATIENCE) as client:
        client.device_info()
        systemd.stop("bellwire@bell.service", "bellwire@bell.socket")
    assert systemd.show("bellwire@bell.service", "Result") == "success"


def test_a_device_that_there_is_not_says_so_in_the_journal(systemd: Bed) -> None:
    systemd.unit("bellwire@bel.service.d/once.conf", "[Service]\nRestart=no\n")
    systemd.systemctl("start", "bellwire@bel.service", check=False)
    entry = systemd.heard(_SYSTEMD_UNIT="bellwire@bel.service", SYSLOG_IDENTIFIER="bellwire")
    assert entry["MESSAGE"] == "bellwire: there is no device 'bel'"
    systemd.stop("bellwire@bel.socket")


def test_it_does_not_take_the_socket_of_a_daemons_device(systemd: Bed) -> None:
    systemd.path("/etc/bellwire/devices.d/bell.toml").write_text('device = "bell"\n')
    systemd.start("bellwired.service")
    systemd.forget()
    assert systemd.run("systemctl", "start", "bellwire@bell.socket", check=False).returncode != 0
    assert "bell.sock: a live server listens there" in " ".join(
        str(entry["MESSAGE"])
        for entry in systemd.journal(UNIT="bellwire@bell.socket", _PID="1")
        + systemd.journal(_SYSTEMD_UNIT="bellwire@bell.socket")
    )
    with Client.connect(systemd.path(SOCKET), timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == BELL
    systemd.stop("bellwired.service", "bellwired.socket")
    systemd.systemctl("reset-failed")
    systemd.path("/etc/bellwire/devices.d/bell.toml").unlink()


def test_the_daemon_does_not_take_its_socket(systemd: Bed, bell: Path) -> None:
    systemd.path("/etc/bellwire/devices.d/bell.toml").write_text('device = "bell"\n')
    systemd.start("bellwired.service")
    assert systemd.show("bellwired.service", "StatusText").endswith("failed: bell")
    with Client.connect(bell, timeout=PATIENCE) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == BELL
        assert systemd.show("bellwire@bell.service", "ActiveState") == "active"
    systemd.stop("bellwired.service", "bellwired.socket")
    systemd.path("/etc/bellwire/devices.d/bell.toml").unlink()
