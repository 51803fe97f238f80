"""bellwired under systemd: ready when it is, alive while it is, and stopped without a trace."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bed import CHECKOUT, PATIENCE, Bed
from bellwire.bundled.edu import Edu
from bellwired import messages
from docs.documents import blocks
from vfio_user import Client, Disconnected, RegionIndex, VfioUserError

pytestmark = pytest.mark.systemd
BELL = bytes.fromhex("341211be")
EDU = bytes.fromhex("3412e811")
SERVICE = "bellwired.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{SERVICE}"
DISK = """
device = "nvme"
socket = "/run/vm1/disk"
group = "kvm"
mode = "0660"
options = { image = "/srv/images/disk", size = "1M" }
"""
UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"  # systemd's own message


def configure(systemd: Bed, name: str, text: str) -> None:
    systemd.path(f"/etc/bellwire/{name}.toml").write_text(text)


def socket_of(systemd: Bed, name: str) -> Path:
    return systemd.path(f"/run/bellwire/{name}.sock")


def identity(client: Client) -> bytes:
    """What a client reads first of a device's config space."""
    return bytes(client.read(RegionIndex.CONFIG, 0, 4))


def identity_of(systemd: Bed, name: str) -> bytes:
    with Client.connect(socket_of(systemd, name), timeout=PATIENCE) as client:
        return identity(client)


def status(systemd: Bed, name: str) -> dict[str, Any]:
    """A device's state, as the command tells it."""
    found: dict[str, Any] = json.loads(systemd.run("bellwire", "status", name, "--json").stdout)
    return found


def processes(systemd: Bed) -> list[str]:
    """The service's, as numbered inside, with those in the groups of devices where there are any."""
    return systemd.run("find", CGROUP, "-name", "cgroup.procs", "-exec", "cat", "{}", "+").stdout.split()


@pytest.fixture
def configured(systemd: Bed) -> Iterator[Bed]:
    """Files for two devices, and a daemon that has not been started. Afterwards it has made no error of its own."""
    systemd.forget()
    configure(systemd, "devices.d/bell", 'device = "bell"\n')
    configure(systemd, "devices.d/edu", 'device = "edu"\n')
    yield systemd
    systemd.stop(SERVICE, "bellwired.socket")
    systemd.systemctl("reset-failed")
    systemd.systemctl("revert", SERVICE)
    for file in systemd.path("/etc/bellwire").rglob("*.toml"):
        file.unlink()
    assert not [entry for entry in systemd.journal(_SYSTEMD_UNIT=SERVICE) if "Traceback" in entry["MESSAGE"]]


@pytest.fixture
def bellwired(configured: Bed) -> Bed:
    """The daemon with two devices."""
    configured.start(SERVICE)
    return configured


def test_started_means_that_every_device_accepts_clients(bellwired: Bed) -> None:
    assert identity_of(bellwired, "bell") == BELL
    assert identity_of(bellwired, "edu") == EDU


def test_the_status_line_counts_devices(bellwired: Bed) -> None:
    assert bellwired.show(SERVICE, "StatusText") == "2 of 2 devices running, 0 with a client"


def test_the_first_command_starts_the_daemon(configured: Bed) -> None:
    configured.start("bellwired.socket")
    assert configured.show(SERVICE, "ActiveState") == "inactive"
    listed = json.loads(configured.run("bellwire", "list", "--json").stdout)
    assert [device["name"] for device in listed] == ["bell", "edu"]
    assert configured.show(SERVICE, "ActiveState") in ("activating", "active")


def test_a_devices_socket_may_be_systemds(configured: Bed) -> None:
    names = "FileDescriptorName=bell\nService=bellwired.service\n"
    configured.unit("bell.socket", f"[Socket]\nListenStream=/run/bellwire/bell.sock\n{names}")
    configured.start("bell.socket")
    try:
        assert identity_of(configured, "bell") == BELL
    finally:
        configured.stop(SERVICE, "bell.socket")


def test_nothing_in_it_has_a_privilege(bellwired: Bed) -> None:
    user = bellwired.run("id", "--user", "bellwire").stdout.strip()
    pids = processes(bellwired)
    assert len(pids) == 4  # the manager, the fork server, two workers
    for pid in pids:
        about = bellwired.path(f"/proc/{pid}/status").read_text()
        assert f"\nUid:\t{user}\t{user}\t" in about
        assert re.search(r"^CapBnd:\t0+$", about, re.MULTILINE)


def test_only_the_manager_may_speak_to_systemd(bellwired: Bed) -> None:
    manager = bellwired.show(SERVICE, "MainPID")
    told = [
        pid for pid in processes(bellwired) if b"NOTIFY_SOCKET" in bellwired.path(f"/proc/{pid}/environ").read_bytes()
    ]
    assert told == [manager]


def test_the_journal_names_the_device_and_explains_the_message(bellwired: Bed) -> None:
    entry = bellwired.heard(MESSAGE_ID=messages.STARTED, BELLWIRE_DEVICE="bell")
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("bell: accepts clients", "6")
    told = bellwired.run("journalctl", "--catalog", "--no-pager", f"MESSAGE_ID={messages.STARTED}").stdout
    assert "Subject: Device bell accepts clients" in told


def test_a_client_is_noted_as_it_comes_and_goes(bellwired: Bed) -> None:
    assert identity_of(bellwired, "edu") == EDU
    came = bellwired.heard(MESSAGE_ID=messages.CLIENT, BELLWIRE_DEVICE="edu")
    left = bellwired.heard(MESSAGE_ID=messages.CLIENT_LEFT, BELLWIRE_DEVICE="edu")
    assert came["BELLWIRE_CLIENT"] == left["BELLWIRE_CLIENT"]


def test_what_a_guest_does_wrong_is_noted(bellwired: Bed) -> None:
    with Client.connect(socket_of(bellwired, "edu"), timeout=PATIENCE) as client:
        client.write(0, Edu.dma_command.offset, (1).to_bytes(8, "little"))  # with bus mastering off
        entry = bellwired.heard(MESSAGE_ID=messages.TROUBLE, BELLWIRE_DEVICE="edu")
    assert (entry["PRIORITY"], "bus mastering off" in entry["MESSAGE"] or "DMA" in entry["MESSAGE"]) == ("4", True)
    assert entry["MESSAGE"].startswith("[edu] ")


def test_reload_touches_only_what_has_changed(bellwired: Bed) -> None:
    configure(bellwired, "devices.d/late", 'device = "edu"\n')
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        bellwired.systemctl("reload", SERVICE)
        assert identity_of(bellwired, "late") == EDU, "the reload is done when systemctl returns"
        bellwired.heard(MESSAGE_ID=messages.RELOADED)
        assert identity(client) == BELL
    assert bellwired.show(SERVICE, "ActiveState") == "active"


def test_a_device_that_cannot_start_is_reported_and_hurts_no_other(bellwired: Bed) -> None:
    configure(bellwired, "devices.d/wrong", 'device = "bel"\n')
    assert bellwired.run("systemctl", "reload", SERVICE, check=False).returncode == 1
    entry = bellwired.heard(MESSAGE_ID=messages.FAILED, BELLWIRE_DEVICE="wrong")
    assert "did you mean bell?" in entry["MESSAGE"]
    assert identity_of(bellwired, "bell") == BELL


def test_a_bad_file_is_told_with_its_key(bellwired: Bed) -> None:
    configure(bellwired, "devices.d/typo", 'device = "edu"\nrestrat = "no"\n')
    assert bellwired.run("systemctl", "reload", SERVICE, check=False).returncode == 1
    entry = bellwired.heard(MESSAGE_ID=messages.BAD_FILE, BELLWIRE_DEVICE="typo")
    assert "/etc/bellwire/devices.d/typo.toml" in entry["MESSAGE"]
    assert "restrat" in entry["MESSAGE"]
    assert entry["PRIORITY"] == "3"


def test_a_broken_bellwired_toml_takes_no_device_down_and_the_journal_has_its_line(configured: Bed) -> None:
    configure(configured, "bellwired", 'control-group = "bellwire"\npong = 1\nmetrics = "unix:/nowhere/metrics"\n')
    configured.start(SERVICE)
    assert identity_of(configured, "bell") == BELL
    told = [entry["MESSAGE"] for entry in configured.journal(_SYSTEMD_UNIT=SERVICE)]
    assert sum("/etc/bellwire/bellwired.toml:2: unknown key pong" in text for text in told) == 1
    assert configured.show(SERVICE, "StatusText").endswith("; trouble with bellwired.toml; trouble with metrics")


def test_systemd_does_not_restart_a_daemon_whose_folder_is_wrong(configured: Bed) -> None:
    configured.unit(f"{SERVICE}.d/gone.conf", "[Service]\nExecStart=\nExecStart=bellwired --config-dir /gone\n")
    assert configured.run("systemctl", "start", SERVICE, check=False).returncode != 0
    configured.run("sh", "-c", f"until [ $(systemctl is-active {SERVICE}) = failed ]; do :; done")
    assert configured.show(SERVICE, "ExecMainStatus") == "78"
    assert configured.show(SERVICE, "NRestarts") == "0"


def test_the_drop_ins_of_the_documentation_are_enough_for_sockets_images_and_taps(configured: Bed) -> None:
    configured.run("systemd-sysusers", "--inline", "g kvm -")
    configured.run("install", "--directory", "--owner=bellwire", "/run/vm1", "/srv/images")
    configure(configured, "devices.d/disk", DISK)
    configure(configured, "devices.d/card", 'device = "virtio-net"\noptions.tap = "bw0"\n')
    configured.start(SERVICE)
    assert configured.show(SERVICE, "StatusText").endswith("; failed: disk")
    assert "/dev/net/tun" in configured.heard(MESSAGE_ID=messages.DIED, BELLWIRE_DEVICE="card")["MESSAGE"]
    for number, block in enumerate(blocks(CHECKOUT / "docs/operating.md", "ini")):
        configured.unit(f"{SERVICE}.d/{number}.conf", block.text)
    configured.systemctl("restart", SERVICE)
    assert configured.show(SERVICE, "StatusText").startswith("4 of 4 devices running")
    assert configured.run("stat", "--format=%G:%a", "/run/vm1/disk").stdout == "kvm:660\n"
    assert configured.run("stat", "--format=%U:%s", "/srv/images/disk").stdout == "bellwire:1048576\n"
    assert configured.path("/sys/class/net/bw0").exists()


def test_a_worker_that_crashes_is_started_again_while_the_others_serve(bellwired: Bed) -> None:
    with Client.connect(socket_of(bellwired, "edu"), timeout=PATIENCE) as client:
        bellwired.run("kill", "-SEGV", str(status(bellwired, "bell")["pid"]))
        assert "SIGSEGV" in bellwired.heard(MESSAGE_ID=messages.DIED, BELLWIRE_DEVICE="bell")["MESSAGE"]
        assert identity(client) == EDU
        assert identity_of(bellwired, "bell") == BELL
    assert bellwired.show(SERVICE, "NRestarts") == "0"


def test_a_worker_that_hangs_is_killed_and_started_again(configured: Bed) -> None:
    configure(configured, "bellwired", "ping-interval = 0.2\nping-timeout = 1.0\n")
    configured.start(SERVICE)
    configured.run("kill", "-STOP", str(status(configured, "bell")["pid"]))
    assert configured.heard(MESSAGE_ID=messages.HUNG, BELLWIRE_DEVICE="bell")
    assert identity_of(configured, "bell") == BELL


def test_a_missed_watchdog_restarts_the_daemon(configured: Bed) -> None:
    configured.unit(f"{SERVICE}.d/watchdog.conf", "[Service]\nWatchdogSec=2\n")
    configured.start(SERVICE)
    stopped = configured.show(SERVICE, "MainPID")
    configured.forget()
    configured.run("kill", "-STOP", stopped)
    assert configured.heard(UNIT=SERVICE, UNIT_RESULT="watchdog")
    assert configured.heard(UNIT=SERVICE, MESSAGE_ID=UNIT_STARTED)
    assert configured.show(SERVICE, "MainPID") != stopped
    assert identity_of(configured, "bell") == BELL


def test_the_watchdog_is_missed_when_the_fork_server_hangs(configured: Bed) -> None:
    configured.unit(f"{SERVICE}.d/watchdog.conf", "[Service]\nWatchdogSec=2\n")
    configured.start(SERVICE)
    manager = configured.show(SERVICE, "MainPID")
    configured.run("pkill", "--signal=STOP", "--parent", manager)
    assert configured.heard(UNIT=SERVICE, UNIT_RESULT="watchdog")


def test_stop_leaves_no_process_and_no_socket(bellwired: Bed) -> None:
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        assert identity(client) == BELL
        bellwired.stop(SERVICE)
    assert bellwired.show(SERVICE, "Result") == "success"
    assert not bellwired.path(CGROUP).exists()
    assert [path.name for path in bellwired.path("/run/bellwire").iterdir()] == ["control"]


def test_a_client_gets_each_reply_whole_until_the_daemon_stops(bellwired: Bed) -> None:
    ends: list[VfioUserError] = []
    busy = threading.Event()

    def read_on(client: Client) -> None:
        try:
            while identity(client) == BELL:
                busy.set()
        except VfioUserError as error:
            ends.append(error)

    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        reader = threading.Thread(target=read_on, args=(client,))
        reader.start()
        busy.wait()
        bellwired.stop(SERVICE)
        reader.join()
    assert [type(end) for end in ends] == [Disconnected]
