"""Device nodes under systemd: KVM for the service that asks for it, and for no other."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bed import PYTHON, Bed

ROOT = Path(__file__).parents[2]
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


NODES = {"/dev/vhost-net": (10, 238), "/dev/vhost-vsock": (10, 241)}  # Linux's Documentation/admin-guide/devices.txt
OPENS = """
import errno, os, sys
try:
    os.open(sys.argv[1], os.O_RDWR)
except OSError as error:
    sys.exit(0 if error.errno in (errno.ENXIO, errno.ENODEV) else error.errno)
"""
"""Opens a node: status 0 if that was allowed, whether the kernel has a driver or not."""


@pytest.mark.parametrize("node", NODES)
def test_the_drop_in_for_the_kernels_vhost_back_ends_lets_the_daemon_have_them(systemd: Bed, node: str) -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    block = next(text for text in page.split("```ini\n") if "DeviceAllow=/dev/vhost-net" in text.partition("```")[0])
    drop_in = [line for line in block.partition("```")[0].splitlines() if line.startswith(("Private", "DeviceAllow"))]
    own = systemd.path("/usr/lib/systemd/system/bellwired.service").read_text().splitlines()
    closed = [line for line in own if line.startswith(("PrivateDevices", "DevicePolicy"))]
    systemd.path("/run/opens.py").write_text(OPENS)
    if not systemd.path(node).exists():
        systemd.run("mknod", node, "c", *map(str, NODES[node]))

    def opens(name: str, settings: list[str]) -> int:
        words = f"ExecStart={PYTHON} /run/opens.py {node}"
        systemd.unit(f"{name}.service", "\n".join(("[Service]", "Type=oneshot", words, *settings)))
        systemd.systemctl("start", f"{name}.service", check=False)
        return int(systemd.show(f"{name}.service", "ExecMainStatus"))

    assert opens("without", closed) == errno.ENOENT
    assert opens("with", [*closed, *drop_in]) == 0
    assert opens("closed", [*closed, *(line for line in drop_in if "DeviceAllow" not in line)]) == errno.EPERM


def test_the_daemon_has_no_kvm(systemd: Bed) -> None:
    own = systemd.path("/usr/lib/systemd/system/bellwired.service").read_text().splitlines()
    hardening = [line for line in own if line.startswith(("Private", "Protect", "Device", "User=", "SystemCall"))]
    assert probe(systemd, "daemon", *hardening) == errno.ENOENT
