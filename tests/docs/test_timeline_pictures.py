"""The pictures of timelines in the documentation show what happens."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

import timeline_pictures

PATIENCE = 2.0
"""Seconds for an interrupt to come, on a machine with much to do."""
recorded = functools.cache(timeline_pictures.record)
SHOWN = re.compile(r'class="fault"[^>]*>([^<]*)<|<title>([^<]*)<')


@pytest.mark.daemon
@pytest.mark.parametrize("picture", timeline_pictures.PICTURES, ids=lambda each: each.name)
def test_a_picture_has_the_events_of_a_run_of_today(picture: Path) -> None:
    faults = timeline_pictures.PICTURES[picture]
    anew = timeline_pictures.drawn({fault: recorded(fault, PATIENCE) for fault in faults})
    assert SHOWN.findall(picture.read_text()) == SHOWN.findall(anew), "run make picture"
