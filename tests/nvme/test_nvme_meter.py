"""What the daemon's metrics say of a disk's work."""

from __future__ import annotations

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.model.meter import LAST, Meter
from bellwire.testing import Guest
from nvme.driver import Driver, TestMachine

READ, WRITE, FLUSH = 2, 1, 0


def meter_of(driver: Driver) -> Meter:
    assert isinstance(driver.machine, TestMachine)
    meter = driver.machine.guest.device.core.meter
    assert meter is not None
    return meter


@pytest.mark.same_device("reads the meter, which begins anew with a process")
def test_commands_at_once_and_by_threads_are_in_the_totals_and_the_histogram(on_image: Driver) -> None:
    queue = on_image.create_queues()
    page = on_image.allocate(4096)
    meter = meter_of(on_image)
    for opcode in (WRITE, READ, FLUSH):
        assert queue.do(opcode, nsid=1, prp1=page, dwords=(0, 0, 7)).status == 0
    found = meter.to_dict()
    assert found["totals"] == {"read": (1, 4096), "write": (1, 4096)}
    assert sum(found["latency"]) == 3
    assert found["nanoseconds"] > 0


def test_admin_commands_are_in_no_histogram(driver: Driver) -> None:
    driver.identify(1)
    assert sum(meter_of(driver).to_dict()["latency"]) == 0


def test_a_bucket_holds_what_took_less_than_its_end_and_the_last_one_all_beyond(guest: Guest[Nvme]) -> None:
    meter = Meter(guest.device, dict)
    for nanoseconds in (0, 4095, 4096, (1 << 32) - 1, 1 << 32, 1 << 62):
        meter.took(nanoseconds, 2)
    latency = meter.to_dict()["latency"]
    assert (latency[0], latency[1], latency[LAST], latency[LAST + 1], len(latency)) == (4, 2, 2, 4, LAST + 2)
