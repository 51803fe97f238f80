"""Data in memoryviews whose items are larger than a byte: all their bytes go, and the connection goes on."""

from __future__ import annotations

import asyncio
import os

import pytest

from protocol.backend import PLAIN, FakeDevice, served
from protocol.guest import GUEST, GuestMemory
from vfio_user import RegionWrite, VfioUserError, aio
from vfio_user.in_process import joined

WORDS = memoryview(b"abcdefgh").cast("H")


@pytest.mark.parametrize("posted", [False, True])
def test_a_write(device: FakeDevice, posted: bool) -> None:
    with joined(device) as (client, _):
        client.write(PLAIN, 0, WORDS, posted=posted)
        assert client.read(PLAIN, 0, 8) == b"abcdefgh"


@pytest.mark.parametrize("posted", [False, True])
def test_a_write_with_asyncio(device: FakeDevice, posted: bool) -> None:
    async def work(client: aio.Client) -> bytes:
        async with client:
            await client.write(PLAIN, 0, WORDS, posted=posted)
            return await client.read(PLAIN, 0, 8)

    async def main() -> bytes:
        return await work(await aio.Client.open(sock))

    with served(device) as (_, sock):
        assert asyncio.run(main()) == b"abcdefgh"


def test_a_write_among_many(device: FakeDevice) -> None:
    with joined(device) as (client, _):
        assert client.write_multi([RegionWrite(PLAIN, 0, WORDS)]) == 1
        assert client.read(PLAIN, 0, 8) == b"abcdefgh"
        with pytest.raises(VfioUserError, match="a write of 16 bytes, expected 1 to 8"):
            client.write_multi([RegionWrite(PLAIN, 0, memoryview(bytes(16)).cast("Q"))])


def test_a_dma_write_by_message(device: FakeDevice) -> None:
    memory = GuestMemory(4096)
    with joined(device, memory=memory) as (client, session):
        client.dma_map(GUEST, 4096)
        session.dma_write(GUEST, WORDS)
        assert session.dma_read(GUEST, 8) == memory.data[:8] == b"abcdefgh"


def test_a_dma_write_by_file_io(device: FakeDevice) -> None:
    file = os.memfd_create("guest")
    os.ftruncate(file, 4096)
    with joined(device) as (client, session):
        client.dma_map(GUEST, 4096, file, file_io=True)
        session.dma_write(GUEST, WORDS)
    assert os.pread(file, 9, 0) == b"abcdefgh\0"
    os.close(file)
