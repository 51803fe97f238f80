"""Every kind of ring that a driver may choose."""

from __future__ import annotations

import pytest

from bellwire.virtio import Feature

KINDS: dict[str, set[int]] = {
    "split": set(),
    "split-event": {Feature.EVENT_IDX},
    "packed": {Feature.RING_PACKED},
    "packed-event": {Feature.RING_PACKED, Feature.EVENT_IDX},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def ring(request: pytest.FixtureRequest) -> set[int]:
    """The features that make one kind of ring."""
    chosen: set[int] = request.param
    return chosen | {Feature.INDIRECT_DESC}
