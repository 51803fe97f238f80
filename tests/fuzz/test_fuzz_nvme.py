"""NVMe: commands, PRP lists, SGLs, doorbells and registers of a hostile guest, and the file of a store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from bellwire.bundled.nvme.store import NAME, Record, Store
from bellwire.storage import StorageError
from fuzz.fuzzing import fuzz, mutated
from nvme.hostile import INPUTS, hostile_guest

RECORD = msgspec.json.encode(Record())
FULL = (
    b'{"version":1,"spaces":[{"nsid":1,"lba_format":1,"number":1,"attached":true,"size":4096,"lost":[[1,2]]}],'
    b'"deleted":[2],"made":3,"power_cycles":4,"sanitize":{"status":1,"action":2,"failure_mode":true},'
    b'"self_tests":[],"events":[],"telemetry":"AAAA","telemetry_generation":5,"telemetry_news":true}'
)


def read_store(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder, NAME).write_bytes(data)
        try:
            store = Store(Path(folder))
        except StorageError:
            return
        store.encode()
        store.close()


_, test_briefly, test_long = fuzz(hostile_guest, INPUTS)
test_store_corpus, test_store_briefly, test_store_long = fuzz(
    read_store, mutated([RECORD, FULL, b"[" * 9]), "nvme-store"
)
