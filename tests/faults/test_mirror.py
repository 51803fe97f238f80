"""The peer of a fuzzed network card."""

from __future__ import annotations

import socket
from pathlib import Path

from bellwired.guest.mirror import mirror


def test_a_frame_comes_back_with_its_addresses_exchanged() -> None:
    with mirror() as options, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as card:
        card.settimeout(10)
        card.bind(options["local"])
        card.sendto(b"x", options["dgram"])  # too short to be a frame
        card.sendto(b"AAAAAABBBBBBrest", options["dgram"])
        assert card.recv(100) == b"BBBBBBAAAAAArest"


def test_a_card_that_is_not_there_yet_does_no_harm_and_nothing_is_left_behind() -> None:
    with mirror() as options, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as card:
        card.sendto(b"AAAAAABBBBBBrest", options["dgram"])
        card.settimeout(10)
        card.bind(options["local"])
        card.sendto(b"CCCCCCDDDDDDrest", options["dgram"])
        assert card.recv(100)[:6] in (b"DDDDDD", b"BBBBBB")
    assert not Path(options["dgram"]).exists()
