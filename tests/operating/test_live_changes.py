"""Options that are changed while a device runs, and the file that starts it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from operating.conftest import Run
from operating.instance import Instance, connect

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


@pytest.fixture(params=["virtio-blk", "nvme"])
def disk(request: pytest.FixtureRequest, daemon: Instance, image: Path) -> str:
    """A disk of 64 MiB that the daemon makes."""
    return daemon.add(f'device = "{request.param}"\n[options]\nimage = "{image}"\nsize = "64M"')


def capacity(daemon: Instance, name: str) -> int | None:
    """What the guest of a virtio disk sees, in bytes (virtio 1.2 §5.2.4); with nvme it must ask by a command."""
    if daemon.describe(name)["device"] != "virtio-blk":
        return None
    with connect(daemon.socket(name)) as client:
        return 512 * int.from_bytes(client.read(0, 0x2000, 8), "little")


def test_a_disk_that_was_resized_starts_again_as_it_is(daemon: Instance, run: Run, disk: str, image: Path) -> None:
    assert image.stat().st_size == 64 * MIB
    assert run("set", disk, "size=100M") == (0, "", "")
    assert image.stat().st_size == 100 * MIB
    since = daemon.now()
    assert run("restart", disk) == (0, "", "")
    assert image.stat().st_size == 100 * MIB
    assert capacity(daemon, disk) in (100 * MIB, None)
    daemon.said(f"image {image} keeps its {100 * MIB} bytes: size={64 * MIB} is for an image that is to be made", since)


def test_a_forgotten_unit_cuts_no_disk(daemon: Instance, run: Run, disk: str, image: Path) -> None:
    image_before = image.stat()
    for text, why in (
        ("200", "size=200: expected a whole number of blocks of 512 bytes, as in size=64M"),
        ("1000", "size=1000: expected a whole number of blocks"),
        ("512", f"size=512 would cut the disk from {64 * MIB} bytes and destroy what lies beyond"),
    ):
        status, _, err = run("set", disk, f"size={text}")
        assert (status, why in err) == (1, True)
    assert image.stat() == image_before
    assert capacity(daemon, disk) in (64 * MIB, None)


def test_a_disk_is_cut_where_that_is_said_and_once(daemon: Instance, run: Run, disk: str, image: Path) -> None:
    assert run("set", disk, "shrink=yes", "size=32M") == (0, "", "")
    assert image.stat().st_size == 32 * MIB
    assert run("set", disk, "size=16M")[0] == 1
    assert run("restart", disk)[0] == 0
    assert image.stat().st_size == 32 * MIB
    assert capacity(daemon, disk) in (32 * MIB, None)


def test_status_shows_what_differs_from_the_file_until_the_next_start(daemon: Instance, run: Run, disk: str) -> None:
    assert run("set", disk, "size=100M")[0] == 0
    assert "Set: size=100M; the next start takes what the file says" in run("status", disk)[1]
    assert json.loads(run("status", disk, "--json")[1])["changed"] == {"size": "100M"}
    assert run("set", disk, "shrink=yes", "size=64M")[0] == 0
    assert json.loads(run("status", disk, "--json")[1])["changed"] == {}
    assert run("set", disk, "size=100M")[0] == 0
    assert run("restart", disk)[0] == 0
    assert json.loads(run("status", disk, "--json")[1])["changed"] == {}


def test_the_file_wins_at_the_next_start(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\noptions.pace = 4')
    assert run("set", name, "pace=9")[0] == 0
    with connect(daemon.socket(name)) as client:
        assert client.read(0, 0, 4)[0] == 9
    assert run("restart", name)[0] == 0
    assert daemon.describe(name)["changed"] == {}
    assert run("reload") == (0, "nothing has changed\n", "")
