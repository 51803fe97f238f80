"""virtio needs guest memory that is shared: where it is not, a driver learns of it before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bellwire.virtio import Feature, Status
from devices.serving import served
from vfio_user import Client
from virtio.echo import Echo

SIZE = 1 << 20
BEFORE = Status.ACKNOWLEDGE | Status.DRIVER


def negotiate(client: Client) -> Status:
    """Ask for VERSION_1 alone; the status that follows."""

    def write(offset: int, value: int, size: int) -> None:
        client.write(0, offset, value.to_bytes(size, "little"))

    write(0x14, BEFORE, 1)
    write(0x08, 1, 4)
    write(0x0C, 1 << Feature.VERSION_1 - 32, 4)
    write(0x14, BEFORE | Status.FEATURES_OK, 1)
    return Status(client.read(0, 0x14, 1)[0])


def test_features_are_refused_where_memory_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    with served(Echo()) as client, caplog.at_level(logging.WARNING):
        client.dma_map(0, SIZE)
        client.dma_map(SIZE, SIZE, write=False)
        assert negotiate(client) == BEFORE
    (message,) = caplog.messages
    assert "not shared" in message
    assert "share=on" in message


def test_other_memory_that_is_not_shared_is_no_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (tmp_path / "memory").open("w+b") as file, served(Echo()) as client, caplog.at_level(logging.WARNING):
        file.truncate(SIZE)
        client.dma_map(0, SIZE, file.fileno())
        client.dma_map(SIZE, SIZE, write=False)
        client.dma_map(2 * SIZE, SIZE)
        assert negotiate(client) == BEFORE | Status.FEATURES_OK
    assert caplog.messages == []


def test_nor_is_memory_that_is_mapped_later_as_behind_an_iommu() -> None:
    with served(Echo()) as client:
        assert negotiate(client) == BEFORE | Status.FEATURES_OK
