"""Device nodes under systemd: KVM for the service that asks for it, and for no other."""

from __future__ import annotations

import errno

import pytest

from bed import PYTHON, Bed

pytestmark = [pytest.mark.systemd, pytest.mark.kvm]
PROBE = """
import sys
from kvm_ioctls import Kvm, KvmError
try:
    with Kvm.open() as kvm, kvm.create_vm():
        print("version", kvm.api_version())
except KvmError as error:
    sys.exit(error.errno)
"""


def probe(systemd: Bed, name: str, *settings: str) -> int:
    """The status of a service that makes a VM, under these settings: 0, or what errno it met."""
    systemd.path("/run/probe.py").write_text(PROBE)
    lines = "\n".join(("[Service]", "Type=oneshot", f"ExecStart={PYTHON} /run/probe.py", *settings))
    systemd.unit(f"{name}.service", lines)
    systemd.systemctl("start", f"{name}.service", check=False)
    return int(systemd.show(f"{name}.service", "ExecMainStatus"))


def test_kvm_is_denied_by_a_closed_policy(systemd: Bed) -> None:
    assert probe(systemd, "closed", "DevicePolicy=closed") == errno.EPERM


def test_kvm_is_allowed_by_name(systemd: Bed) -> None:
    assert probe(systemd, "allowed", "DevicePolicy=closed", "DeviceAllow=/dev/kvm rw") == 0


def test_private_devices_have_no_kvm(systemd: Bed) -> None:
    assert probe(systemd, "private", "PrivateDevices=yes") == errno.ENOENT


def test_the_daemon_has_no_kvm(systemd: Bed) -> None:
    own = systemd.path("/usr/lib/systemd/system/bellwired.service").read_text().splitlines()
    hardening = [line for line in own if line.startswith(("Private", "Protect", "Device", "User=", "SystemCall"))]
    assert probe(systemd, "daemon", *hardening) == errno.ENOENT
