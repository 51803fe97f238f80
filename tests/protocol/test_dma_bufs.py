"""DMA_BUF: areas of a region as a dma-buf. Where the kernel has no udmabuf, all but the dma-buf itself is tested."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import AREAS, MAPPED, PLAIN, FakeDevice, Link, Wire, fd_count
from vfio_user import Client, Command, FeatureFlags, MmapArea, ProtocolError, RemoteError, dma_bufs
from vfio_user.dma_bufs import DmaBufRequest, export
from vfio_user.in_process import joined

GET = FeatureFlags.GET | 11
PAGE = 4096


def request(*ranges: int, region: int = MAPPED, open_flags: int = os.O_RDWR, flags: int = 0, count: int = -1) -> bytes:
    """A DEVICE_FEATURE request, by the fields of linux/vfio.h."""
    data = struct.pack("<IIII", region, open_flags, flags, len(ranges) // 2 if count < 0 else count)
    data += struct.pack(f"<{len(ranges)}Q", *ranges)
    return struct.pack("<II", 8 + len(data), GET) + data


BAD = {
    "no data": struct.pack("<II", 8, GET),
    "no ranges": request(),
    "cut ranges": request(PAGE, PAGE, count=2),
    "many ranges": request(PAGE, PAGE, count=1 << 31),
    "flags": request(PAGE, PAGE, flags=1),
    "open flags": request(PAGE, PAGE, open_flags=os.O_CREAT),
    "no such region": request(PAGE, PAGE, region=9),
    "a region without areas": request(PAGE, PAGE, region=PLAIN),
    "outside the area": request(0, PAGE),
    "longer than the area": request(PAGE, 2 * PAGE),
    "two areas at once": request(PAGE, 3 * PAGE),
    "half a page": request(PAGE, PAGE // 2),
    "between pages": request(PAGE + 8, PAGE - 8),
    "nothing": request(PAGE, 0),
    "wraps around": request(PAGE, (1 << 64) - PAGE),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_before_the_kernel_is_asked(
    link: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, payload: bytes
) -> None:
    present = tmp_path / "udmabuf"
    present.touch()
    monkeypatch.setattr(dma_bufs, "DEVICE", present)
    before = fd_count()
    assert link.refused(Command.DEVICE_FEATURE, payload) == errno.EINVAL
    assert "DMA_BUF" in str(link.device.refusals[0])
    assert fd_count() == before


def test_without_udmabuf_the_feature_is_not_there(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dma_bufs, "DEVICE", tmp_path / "udmabuf")
    with joined(device) as (client, _):
        for ask in (
            lambda: client.dma_buf(MAPPED, AREAS),
            lambda: client.device_feature(FeatureFlags.PROBE | FeatureFlags.GET, 11),
        ):
            with pytest.raises(RemoteError) as refusal:
                ask()
            assert refusal.value.errno == errno.ENOTSUP
    assert "udmabuf: No such file or directory" in str(device.refusals[-1])


def test_what_udmabuf_refuses_is_refused(link: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "udmabuf").touch()
    monkeypatch.setattr(dma_bufs, "DEVICE", tmp_path / "udmabuf")  # a file knows no such ioctl
    assert link.refused(Command.DEVICE_FEATURE, request(PAGE, PAGE)) == errno.ENOTTY
    assert "udmabuf: Inappropriate ioctl" in str(link.device.refusals[0])


@given(st.binary(max_size=80))
def test_any_data_is_read_or_refused(data: bytes) -> None:
    with suppress(ProtocolError):
        found = DmaBufRequest.unpack(data)
        assert data.startswith(found.pack())


def test_a_reply_without_a_descriptor_is_refused(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    client, wire = fake_server()
    with wire.answering((b"", [])), pytest.raises(ProtocolError, match="DMA_BUF without a descriptor"):
        client.dma_buf(MAPPED, AREAS)


@pytest.mark.skipif(not os.path.exists(dma_bufs.DEVICE), reason="this kernel has no udmabuf; tests/nested runs it")
def test_another_device_writes_into_the_areas_through_the_dma_buf() -> None:
    """The BAR of one device is the DMA target of another: its client hands the dma-buf on by DMA_MAP."""
    with (
        closing(FakeDevice(sealed=True)) as target,
        closing(FakeDevice()) as master,
        joined(target) as (client, _),
        joined(master) as (other, session),
    ):
        client.device_feature(FeatureFlags.PROBE | FeatureFlags.GET, 11)
        fd = client.dma_buf(MAPPED, [MmapArea(12288, PAGE), MmapArea(PAGE, PAGE)])
        other.dma_map(0x10000, 2 * PAGE, fd)
        os.close(fd)
        for at, data in ((0x10000, b"last"), (0x10000 + PAGE, b"frst")):
            (segment,) = session.dma.segments(at, 4, write=True)
            assert segment.view is not None
            segment.view[:] = data
        assert (os.pread(target.area, 4, 12288), os.pread(target.area, 4, PAGE)) == (b"last", b"frst")


def test_the_numbers_are_linux(link: Link) -> None:
    assert (dma_bufs.HEAD.size, dma_bufs.RANGE.size, dma_bufs.CREATE_LIST) == (
        16,
        16,
        1 << 30 | 8 << 16 | 0x75 << 8 | 0x43,
    )
    with pytest.raises(ProtocolError):
        export(DmaBufRequest(12, AREAS), link.session._accesses.regions)
