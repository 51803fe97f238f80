"""virtio: split and packed rings, indirect tables, net headers, requests of disks, and what comes from outside."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import strategies as st

from fuzz.fuzzing import fuzz
from virtio.conftest import KINDS
from virtio.test_virtio_fuzz import DEVICES, junk

INPUTS = st.tuples(st.sampled_from(sorted(DEVICES)), st.sampled_from(sorted(KINDS)), st.integers(0, (1 << 64) - 1))


def attack(drawn: tuple[str, str, int]) -> None:
    device, kind, seed = drawn
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        junk(Path(folder, "socket"), device, kind, seed)


_, test_briefly, test_long = fuzz(attack, INPUTS)
