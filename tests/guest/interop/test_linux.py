"""Linux drives our devices with its own drivers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.fetch import SUITE
from bellwired.guest.toolbox import Toolbox
from interop import workout
from interop.fetched import fetch_kernel
from interop.page import Row
from interop.workout import Done, digest, work_out
from patched import PatchedToolbox

pytestmark = [pytest.mark.guest, pytest.mark.long]

PORT_16550A = "4"  # Linux, include/uapi/linux/serial.h


@dataclass
class Under:
    """A boot: the QEMU that the guest runs in, its name if it is not Debian's, and what the guest has shown."""

    tools: Toolbox
    done: Done
    qemu: str | None = None

    def introduce(self, row: Row) -> None:
        """The row learns what took part."""
        qemu, kernel = f"QEMU {self.tools.qemu_version}", f"Linux {self.done.release}"
        short = ".".join(kernel.split(".")[:2])
        row.name_variant(f"{short} in {self.qemu}{qemu}" if self.qemu is not None else short)
        row.against(qemu, kernel)

    def device(self, row: Row, name: str, driver: str) -> list[str]:
        """What the guest has said of a device whose driver has bound."""
        self.introduce(row)
        if name in self.done.missing:
            pytest.skip(self.done.missing[name])
        row.took = self.done.seconds[name]
        bound, *said = self.done.said[name]
        assert bound == f"driver={driver}"
        return said


SUITES = ("bookworm", "trixie", "trixie-backports")
OLDER, PATCHED = "older QEMU", "patched QEMU"


@pytest.fixture(scope="module", params=[*SUITES, OLDER, PATCHED])
def under(request: pytest.FixtureRequest, tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Under:
    """A boot that all rows of one kernel, or one QEMU, share. The guest tools' own kernel is trixie's."""
    chosen, qemu = tools, None
    if request.param in (OLDER, PATCHED):
        patched: PatchedToolbox = request.getfixturevalue("patched_tools")
        chosen, qemu = (patched, "patched ") if request.param == PATCHED else (patched.unpatched, "")
    elif request.param != SUITE:
        try:
            chosen = fetch_kernel(tools, request.param)
        except (ArchiveError, OSError) as error:
            pytest.skip(f"no kernel of {request.param}: {error}")
    return Under(chosen, work_out(chosen, tmp_path_factory.mktemp("linux")), qemu)


def test_it_boots(row: Row, under: Under) -> None:
    """boots with seven devices, and powers off"""
    under.introduce(row)
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
    kind, *said = under.device(row, "serial", "serial")
    assert kind == PORT_16550A
    assert said == [digest(under.done.sent["serial"]), "goodbye"]
    assert under.done.returned["serial"] == under.done.sent["serial"]
    row.tell(f"{workout.SERIAL >> 10} KiB each way, their SHA-256 is right")


def test_edu(row: Row, under: Under) -> None:
    """edu: registers by /dev/mem"""
    said = under.device(row, "edu", "driver")  # that is what is there without one
    assert [int(each, 16) for each in said] == [0x0100_00ED, ~0x1234_5678 & 0xFFFF_FFFF, 3_628_800]
    row.tell("ID, liveness and 10! are right; it has no driver")
