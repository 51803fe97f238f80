"""Devices in control groups, on a kernel that has them in version 2 with all controllers."""

from __future__ import annotations

import re

import pytest

import bed as systemd_bed
import bed_venv
from nested.test_bed import CHECKOUT, HERE, PYTEST, Bed, bed, tools

__all__ = ["bed", "tools"]

pytestmark = [pytest.mark.nested, pytest.mark.long]


def passed(bed: Bed, file: str) -> int:
    """How many tests of a file have passed in the bed, where none has failed."""
    ran = bed("debian", *PYTEST, HERE / file, timeout=400.0)
    said = re.search(r"^(\d+) passed in ", ran.text, re.MULTILINE)
    assert said, ran.text
    return int(said[1])


def test_a_delegated_control_group_holds_devices_to_their_limits(bed: Bed) -> None:
    assert passed(bed, "device_groups.py") == 6


def test_systemd_delegates_the_units_control_group_to_the_daemon(bed: Bed) -> None:
    if reason := systemd_bed.why_not():
        pytest.skip(f"cannot boot a systemd here: {reason}")
    bed_venv.venv(CHECKOUT)  # made here: the bed has no network
    assert passed(bed, "unit_groups.py") == 3
