"""Devices in control groups, on a kernel that has them in version 2 with all controllers."""

from __future__ import annotations

import re

import pytest

from nested.test_bed import HERE, PYTEST, Bed, bed, tools

__all__ = ["bed", "tools"]

pytestmark = pytest.mark.nested


def test_a_delegated_control_group_holds_devices_to_their_limits(bed: Bed) -> None:
    ran = bed("debian", *PYTEST, HERE / "device_groups.py", timeout=240.0)
    passed = re.search(r"^(\d+) passed in ", ran.text, re.MULTILINE)
    assert passed, ran.text
    assert int(passed[1]) == 6
