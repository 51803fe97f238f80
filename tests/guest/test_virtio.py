"""A stock Linux drives our virtio devices, in a stock QEMU: its own drivers, split and packed rings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attached import Device
from linux import Outcome

pytestmark = pytest.mark.guest

RINGS = pytest.mark.parametrize("packed", ["no", "yes"], ids=["split", "packed"])
AWAIT = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
"""

RANDOM = f"""{AWAIT}
await /sys/class/misc/hw_random/rng_current
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/bytes bs=64k count=4 iflag=fullblock 2>/dev/null
wc -c </bytes
gzip -c /bytes | wc -c
cat /sys/bus/virtio/devices/virtio0/features | cut -c 29-40
grep virtio /proc/interrupts | grep -c input
"""


@RINGS
def test_hwrng_gives_what_virtio_rng_gives(linux: Callable[..., Outcome], packed: str) -> None:
    outcome = linux(RANDOM, Device("virtio-rng", {"packed": packed}), modules=["virtio-rng"])
    name, size, compressed, features, queues = outcome.output.split()
    assert outcome.status == 0
    assert (name, int(size)) == ("virtio_rng.0", 256 << 10)
    assert int(compressed) > int(size), "random bytes do not compress"
    assert features == ("110011100000" if packed == "yes" else "110011000000")
    assert queues == "1"
