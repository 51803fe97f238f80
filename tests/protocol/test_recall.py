"""Messages that are known before they arrive are given out by their bytes, without being taken apart."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protocol.backend import Wire, message, take
from vfio_user import Channel, Command

BODY = bytes(range(16))
WHOLE = message(Command.REGION_READ, BODY, id=7)


@dataclass
class Sized:
    """What is known of a message."""

    size: int = len(WHOLE)


KNOWN = {WHOLE[2:]: Sized()}


def test_a_known_message_is_given_out_with_its_id_and_what_is_known(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(WHOLE)
    number, found, data = channel.recall(KNOWN) or (b"", None, memoryview(b""))
    assert (number, found, bytes(data)) == (b"\x07\0", Sized(), b"")
    assert (channel.empty, channel.position) == (True, len(WHOLE))


def test_the_data_behind_what_is_known_comes_with_it(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(WHOLE + b"ring" + WHOLE)
    _, _, data = channel.recall({WHOLE[2:]: Sized(len(WHOLE) + 4)}) or (b"", None, memoryview(b""))
    assert bytes(data) == b"ring"
    assert channel.position == len(WHOLE) + 4
    assert channel.recall(KNOWN) is not None


@pytest.mark.parametrize("short", [1, 4])
def test_a_known_message_that_is_not_whole_stays(ends: tuple[Wire, Channel], short: int) -> None:
    wire, channel = ends
    wire.raw((WHOLE + b"ring")[:-short])
    assert channel.recall({WHOLE[2:]: Sized(len(WHOLE) + 4)}) is None
    assert not channel.empty


def test_an_unknown_message_stays_for_receive(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(WHOLE)
    assert channel.recall({}) is None
    assert (take(channel).id, channel.recall(KNOWN)) == (7, None)
