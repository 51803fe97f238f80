"""What the daemon's metrics say of a virtio disk's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtio.test_virtio_blk import ALL, FLUSH, GET_ID, IN, OK, SIZE, Disk


@pytest.mark.same_device("reads the meter, which begins anew with a process")
def test_the_meter_counts_reads_and_writes_that_were_done_and_how_long_they_took() -> None:
    disk = Disk(set(map(int, ALL)), size=SIZE)
    disk.write(1, b"w" * 4096)
    disk.read(1, 512)
    disk.read(1, 1024)
    disk.request(GET_ID, room=20)
    disk.request(IN, 1 << 40, room=512)
    meter = disk.device.meter.to_dict()
    disk.driver.close()
    assert meter["totals"] == {"read": (2, 1536), "write": (1, 4096)}
    assert sum(meter["latency"]) == 5
    assert meter["nanoseconds"] > 0


def test_the_meter_counts_what_threads_have_moved(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    disk = Disk(set(map(int, ALL)), image=image)
    disk.write(1, b"w" * 4096)
    assert disk.request(FLUSH)[0] == OK
    meter = disk.device.meter.to_dict()
    disk.driver.close()
    assert meter["totals"]["write"] == (1, 4096)
    assert sum(meter["latency"]) == 2
