"""The file of a recording: what is in it comes back, and what is damaged or hostile is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.recording import BadRecording, Recorded, replay, replayer
from bellwire.recording.format import (
    LARGEST_STATE,
    MAGIC,
    VERSION,
    Body,
    Entry,
    deflated,
    head,
    inflated,
    number,
    record,
)
from bellwire.recording.recorder import NO_LEVEL
from recording.test_recording import Thing, recorded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "a.bwrec"
    recorded(path)
    return path


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_come_back(value: int) -> None:
    assert Body(Entry(0, "R", number(value))).number() == value


@given(st.binary(max_size=2000) | st.integers(0, 5000).map(bytes))
def test_bytes_come_back_deflated_or_not(data: bytes) -> None:
    packed, kept = deflated(data)
    assert len(kept) <= len(data)
    assert inflated(packed, kept, len(data)) == data


@given(st.data())
def test_a_damaged_recording_is_refused_or_differs(path: Path, data: st.DataObject) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged")
    damaged.write_bytes(whole)
    with contextlib.suppress(BadRecording):
        replay(damaged, Thing)


BEGUN = head(Recorded("thing", {}, "")) + record("E", bytes(4)) + record("B", 1, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no recording"),
        (b"BWREC\r\n\x1a\x01", "version 1: 2 expected"),
        (MAGIC + bytes([VERSION]) + number(1 << 40), "head of the recording is damaged"),
        (MAGIC + bytes([VERSION]) + number(2) + b"{}", "head of the recording is damaged"),
        (head(Recorded("thing", {}, "")) + b"R" + number(1 << 40), "at most"),
        (MAGIC + bytes([VERSION]) + number(400_000) + b"[" * 400_000, "head of the recording is damaged"),
        (head(Recorded("thing", {}, "")), "ends before the device has started"),
        (head(Recorded("thing", {}, "")) + record("Q", 0, 1) + record("Z"), "record 0 .* out of place"),
        (BEGUN + record("S", 0, 5, 16, *deflated(bytes(16))) * 2, "16 bytes of a state in a record, and 5 behind it"),
        (BEGUN + record("S", 0, LARGEST_STATE, 1, *deflated(b"x")), "1 bytes of a state in a record"),
        (BEGUN + record("i", 2, 4, NO_LEVEL, 1, 1) + record("X", 0, 1), "record 2: the device has no interrupt MSIX 4"),
        (BEGUN + record("i", 0, 0, NO_LEVEL, 1, 1) + record("X", 0, 1), "the device has no interrupt INTX 0"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadRecording, match=said):
        replay(tmp_path / "a", Thing)


@pytest.mark.parametrize("begin", [b"", record("R", 0, 0, 0, 4)])
def test_records_of_one_input_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(replayer, "MOST_OUTPUTS", 100)
    (tmp_path / "a").write_bytes(BEGUN + begin + record("D", 0, 4, 0, b"") * 101)
    with pytest.raises(BadRecording, match="one of too many because of one input"):
        replay(tmp_path / "a", Thing)
