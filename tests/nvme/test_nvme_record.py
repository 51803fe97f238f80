"""What nvme's store may hold: the bounds of its fields, and what a new one says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bellwire.bundled.nvme.store import Record, SanitizeRecord, SpaceRecord, Store
from bellwire.storage import StorageError


def test_a_new_store_says_nothing() -> None:
    empty: tuple[Any, ...] = (1, [], [], 0, 0, SanitizeRecord(0, 0, False), [], [], b"", 0, False)
    assert msgspec.structs.astuple(Record()) == empty
    assert msgspec.json.encode(SpaceRecord(1, 0, 0, True, 0, [])) == b'{"nsid":1,"lba_format":0,"number":0}'
    assert Store(None).encode() == (1, b'{"sanitize":{}}')


def text(length: int) -> str:
    return base64.b64encode(bytes(length)).decode()


def space(**fields: Any) -> dict[str, Any]:
    return {"spaces": [{"nsid": 1, "lba_format": 0, "number": 0, **fields}]}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ([{"made": (1 << 62) - 1}, {"made": 0}], [{"made": 1 << 62}, {"made": -1}]),
        ([space(nsid=1), space(nsid=256)], [space(nsid=0), space(nsid=257)]),
        ([space(lba_format=0), space(lba_format=1)], [space(lba_format=-1), space(lba_format=2)]),
        ([space(lost=[[1, 1]] * 1024)], [space(lost=[[1, 1]] * 1025)]),
        ([{"sanitize": {"status": 3}}], [{"sanitize": {"status": 4}}, {"sanitize": {"status": -1}}]),
        ([{"sanitize": {"action": (1 << 32) - 1}}], [{"sanitize": {"action": 1 << 32}}]),
        ([{"self_tests": [text(28)] * 20}], [{"self_tests": [text(28)] * 21}, {"self_tests": [text(27)]},
                                            {"self_tests": [text(29)]}]),
        ([{"events": [text(24), text(4096)]}], [{"events": [text(23)]}, {"events": [text(4097)]}]),
        ([{"telemetry_generation": 255}], [{"telemetry_generation": 256}, {"telemetry_generation": -1}]),
    ],
)  # fmt: skip
def test_a_field_is_read_within_its_bounds(tmp_path: Path, good: list[Any], bad: list[Any]) -> None:
    for record in good:
        (tmp_path / "nvme.json").write_text(json.dumps(record))
        Store(tmp_path).close()
    for record in bad:
        (tmp_path / "nvme.json").write_text(json.dumps(record))
        with pytest.raises(StorageError, match="remove it to begin anew"):
            Store(tmp_path)


def test_the_file_is_of_64_mib_at_most(tmp_path: Path) -> None:
    for size, why in ((64 << 20, "malformed"), ((64 << 20) + 1, "67108865 bytes, at most 67108864")):
        with (tmp_path / "nvme.json").open("wb") as file:
            file.truncate(size)
        with pytest.raises(StorageError, match=why):
            Store(tmp_path)


def test_a_store_is_its_owners_and_a_second_close_does_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    store.close()
    store.close()
    Store(tmp_path / "a" / "b").close()


def test_a_new_namespace_is_empty_whatever_was_in_its_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "namespace-3.img"
    path.write_bytes(b"1" * 1024)
    old = store.disk(3, 1024, 512)
    assert path.read_bytes() == b"1" * 1024
    old.close()
    store.disk(3, 2048, 512, new=True).close()
    assert path.read_bytes() == bytes(2048)
    store.remove(3)
    store.remove(3)
    assert not path.exists()
    store.close()
