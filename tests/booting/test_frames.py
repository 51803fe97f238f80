"""The channel's frames: what the host makes of any bytes that a guest sends."""

from __future__ import annotations

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwired.guest.errors import ChannelError
from bellwired.guest.frames import HEAD, MOST, Decoder, Frame, Kind, encode, start

STREAMS = st.builds(Frame, st.sampled_from([Kind.OUTPUT, Kind.ERRORS]), st.integers(0, 0xFFFF), st.binary(max_size=300))
COUNTS = st.builds(Frame, st.just(Kind.TAKEN), st.integers(0, 0xFFFF), st.binary(min_size=4, max_size=4))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[first:last] for first, last in itertools.pairwise(places)]


@given(st.lists(st.one_of(STREAMS, COUNTS)), st.lists(st.integers(0, 10_000)))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(encode(*frame) for frame in frames)
    assert [frame for piece in pieces(data, cuts) for frame in decoder.feed(piece)] == frames


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_frames_or_an_error_and_little_is_held(guest_bytes: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for data in guest_bytes:
            for frame in decoder.feed(data):
                assert len(frame.payload) <= MOST
    except ChannelError:
        return
    assert len(decoder._held) < HEAD.size + MOST


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ((0, 1, Kind.START, 0), "kind 1"),
        ((0, 1, 99, 0), "kind 99"),
        ((MOST + 1, 1, Kind.OUTPUT, 0), "65537 bytes"),
        ((5, 1, Kind.TAKEN, 0), "5 bytes: expected 4"),
        ((1, 1, Kind.OUTPUT, 7), "is 7, not 0"),
    ],
)
def test_a_head_that_no_agent_sends_is_refused_before_its_payload(head: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ChannelError, match=problem):
        list(Decoder().feed(HEAD.pack(*head)))


def test_an_agent_of_another_version_is_refused() -> None:
    with pytest.raises(ChannelError, match="version 9: expected 1"):
        list(Decoder().feed(encode(Kind.HELLO, 0, b"\x09\0\0\0")))


def test_a_status_that_wait_does_not_know_is_refused() -> None:
    with pytest.raises(ChannelError, match="no wait status"):
        list(Decoder().feed(encode(Kind.ENDED, 1, b"\x7f\x13\0\0")))


@pytest.mark.parametrize(("status", "expected"), [(3 << 8, 3), (0, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_status_is_that_of_an_exit_or_of_a_signal(status: int, expected: int) -> None:
    (frame,) = Decoder().feed(encode(Kind.ENDED, 1, status.to_bytes(4, "little")))
    assert frame.status == expected


@pytest.mark.parametrize(
    ("words", "problem"), [(["a\0b"], "NUL"), (["x" * MOST], "at most"), (["x"] * 4001, "4001 words"), ([], "0 words")]
)
def test_a_command_that_does_not_fit_is_not_sent(words: list[str], problem: str) -> None:
    with pytest.raises(ChannelError, match=problem):
        start(words)
