"""Every kind of ring that a driver may choose, and a card whose other side is a socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire.virtio import Feature
from virtio.card import PATIENCE, Card
from virtio.frames import Make

KINDS: dict[str, set[int]] = {
    "split": set(),
    "split-event": {Feature.EVENT_IDX},
    "packed": {Feature.RING_PACKED},
    "packed-event": {Feature.RING_PACKED, Feature.EVENT_IDX},
}


FORMATS = ("split", "packed-event")
"""Both formats, and both ways to be told: for a file that says ``RINGS = FORMATS``. What a device does with rings is
tried on these; what rings do, on all.
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try a test that takes a ring, and does not say which, on each kind of them."""
    says = any("ring" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "ring" in metafunc.fixturenames and not says:
        kinds: tuple[str, ...] = getattr(metafunc.module, "RINGS", tuple(KINDS))
        metafunc.parametrize("ring", [KINDS[kind] for kind in kinds], ids=kinds, indirect=True)


@pytest.fixture
def ring(request: pytest.FixtureRequest) -> set[int]:
    """The features that make one kind of ring."""
    chosen: set[int] = request.param
    return chosen | {Feature.INDIRECT_DESC}


@pytest.fixture
def far(tmp_path: Path) -> Iterator[socket.socket]:
    """The other side's datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        far.bind(os.fspath(tmp_path / "far"))
        far.settimeout(PATIENCE)
        yield far


@pytest.fixture
def make(tmp_path: Path, far: socket.socket) -> Iterator[Make]:
    """Make a card whose other side is ``far``; the two are joined."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Card:
            usual: dict[str, Any] = {"mac": "52:54:00:12:34:56", "dgram": tmp_path / "far", "local": tmp_path / "near"}
            card = Card(*arguments, **usual | options)
            stack.callback(card.close)
            far.connect(os.fspath(tmp_path / "near"))
            return card

        yield make


@pytest.fixture
def card(make: Make, ring: set[int]) -> Card:
    return make(ring)
