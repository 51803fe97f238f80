"""dma-bufs of a BAR's areas, on Debian's kernel: it has udmabuf. In the bed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nested.test_bed import PYTEST, Bed, bed, tools

__all__ = ["bed", "tools"]

pytestmark = [pytest.mark.nested, pytest.mark.long]

TEST = Path(__file__).parent.parent / "protocol/test_dma_bufs.py"


def test_another_device_writes_into_the_areas_of_a_bar(bed: Bed) -> None:
    assert "1 passed" in bed("debian", *PYTEST, "-k", "another_device", TEST).text
