"""Linux drives our devices with its own drivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.toolbox import Toolbox
from interop import workout
from interop.fetched import fetch_kernel
from interop.page import Row
from interop.workout import Done, digest, work_out
from patched import PatchedToolbox

pytestmark = [pytest.mark.guest, pytest.mark.long]


@dataclass
class Under:
    """The guest's kernel, and the QEMU that it runs in."""

    tools: Toolbox
    done: Done

    def device(self, row: Row, name: str, driver: str) -> list[str]:
        """What the guest has said of a device whose driver has bound; the row learns what took part."""
        row.against(f"QEMU {self.tools.qemu_version}", f"Linux {self.done.release}")
        if name in self.done.missing:
            pytest.skip(self.done.missing[name])
        row.took = self.done.seconds[name]
        bound, *said = self.done.said[name]
        assert bound == f"driver={driver}"
        return said


KERNELS = {"Linux 6.1": "bookworm", "Linux 6.12": "", "Linux 7.3": "trixie-backports"}
QEMUS: dict[str, Callable[[PatchedToolbox], Toolbox]] = {
    "QEMU 10.2.2": lambda patched: patched.unpatched,
    "patched QEMU": lambda patched: patched,
}


@pytest.fixture(scope="module", params=[*KERNELS, *QEMUS])
def under(request: pytest.FixtureRequest, tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Under:
    """A boot that all rows of one kernel, or one QEMU, share."""
    chosen = tools
    if request.param in QEMUS:
        chosen = QEMUS[request.param](request.getfixturevalue("patched_tools"))
    elif suite := KERNELS[request.param]:
        try:
            chosen = fetch_kernel(tools, suite)
        except (ArchiveError, OSError) as error:
            pytest.skip(f"no kernel of {suite}: {error}")
    return Under(chosen, work_out(chosen, tmp_path_factory.mktemp("linux")))


def test_it_boots(row: Row, under: Under) -> None:
    """boots with seven devices, and powers off"""
    row.against(f"QEMU {under.tools.qemu_version}", f"Linux {under.done.release}")
    row.took = under.done.outcome.seconds
    row.tell(under.done.release)
    for word in ("BUG:", "WARNING:", "Oops", "Call Trace"):
        assert word not in under.done.outcome.console


def check_disk(row: Row, under: Under, name: str, driver: str) -> None:
    said = under.device(row, name, driver)
    assert said == [digest(under.done.sent[name]), "written"]
    assert under.done.returned[name] == under.done.sent[name]
    row.tell(f"{workout.DISK >> 20} MiB each way, their SHA-256 is right")


def test_nvme(row: Row, under: Under) -> None:
    """nvme: blocks, both ways"""
    check_disk(row, under, "nvme", "nvme")


def test_virtio_blk(row: Row, under: Under) -> None:
    """virtio-blk: blocks, both ways"""
    check_disk(row, under, "virtio-blk", "virtio-pci")


def test_virtio_net(row: Row, under: Under) -> None:
    """virtio-net: TCP, both ways"""
    assert under.device(row, "virtio-net", "virtio-pci") == [digest(under.done.sent["virtio-net"])]
    assert under.done.returned["virtio-net"] == under.done.sent["virtio-net"]
    row.tell(f"{workout.NET >> 20} MiB each way, their SHA-256 is right")


def test_virtio_console(row: Row, under: Under) -> None:
    """virtio-console: a port, both ways"""
    assert under.device(row, "virtio-console", "virtio-pci") == [digest(under.done.sent["virtio-console"]), "goodbye"]
    assert under.done.returned["virtio-console"] == under.done.sent["virtio-console"]
    row.tell(f"{workout.CONSOLE >> 20} MiB each way, its SHA-256 is right")


def test_virtio_rng(row: Row, under: Under) -> None:
    """virtio-rng: /dev/hwrng"""
    name, size, compressed = under.device(row, "virtio-rng", "virtio-pci")
    assert (name, size) == ("virtio_rng.0", str(64 << 10))
    assert int(compressed) > int(size), "random bytes do not compress"
    row.tell("64 KiB, which gzip makes no smaller")


def test_serial(row: Row, under: Under) -> None:
    """serial: a 16550A, both ways"""
    assert under.device(row, "serial", "serial") == [digest(under.done.sent["serial"]), "goodbye"]
    assert under.done.returned["serial"] == under.done.sent["serial"]
    row.tell(f"{workout.SERIAL >> 10} KiB each way, their SHA-256 is right")


def test_edu(row: Row, under: Under) -> None:
    """edu: registers by /dev/mem"""
    said = under.device(row, "edu", "driver")  # that is what is there without one
    assert [int(each, 16) for each in said] == [0x0100_00ED, ~0x1234_5678 & 0xFFFF_FFFF, 3_628_800]
    row.tell("ID, liveness and 10! are right; it has no driver")
