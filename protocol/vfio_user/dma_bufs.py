"""DMA_BUF, a feature of DEVICE_FEATURE: areas of a region as a dma-buf, so that other devices can reach them by DMA.

Areas lie in a memfd. The kernel's udmabuf makes a dma-buf of its pages (linux/udmabuf.h); the request is that of
linux/vfio.h, struct vfio_device_feature_dma_buf. The ratified text does not have the feature.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vfio_user.constants import Feature
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.fields import Fields
from vfio_user.regions import MmapArea, Region

HEAD = Fields("<IIII", "region_index open_flags flags nr_ranges")
RANGE = Fields("<QQ", "offset length")
MOST_RANGES = 1024  # udmabuf's own limit, unless its module says otherwise
DEVICE = "/dev/udmabuf"
CREATE_LIST = 0x40087543
_LIST = struct.Struct("=II")  # flags, count
_ITEM = struct.Struct("=IIQQ")  # memfd, padding, offset, size
_CLOEXEC = 1
_NAME = Feature.DMA_BUF.name
_KNOWN_FLAGS = os.O_ACCMODE | os.O_CLOEXEC


class DmaBufRequest(NamedTuple):
    """The data of a request, and of its reply, which has the dma-buf as its descriptor."""

    region: int
    ranges: tuple[MmapArea, ...]
    open_flags: int = os.O_RDWR | os.O_CLOEXEC

    def pack(self) -> bytes:
        """The data."""
        head = HEAD.pack(self.region, self.open_flags, 0, len(self.ranges))
        return head + b"".join(RANGE.pack(*each) for each in self.ranges)

    @classmethod
    def unpack(cls, data: bytes) -> DmaBufRequest:
        """Decode the data. Raises ProtocolError, which names the field that is wrong."""
        if len(data) < HEAD.size:
            raise ProtocolError(f"{_NAME}: {len(data)} bytes, expected at least {HEAD.size}")
        region, open_flags, flags, count = HEAD.unpack_from(data)
        if flags or open_flags & ~_KNOWN_FLAGS:
            raise ProtocolError(
                f"{_NAME}: flags {flags:#x}, open_flags {open_flags:#o}: expected 0, and an access mode"
            )
        if not 1 <= count <= MOST_RANGES or HEAD.size + count * RANGE.size > len(data):
            raise ProtocolError(f"{_NAME}: nr_ranges {count} in {len(data)} bytes, expected 1 to {MOST_RANGES}")
        ranges = RANGE.iter_unpack(data[HEAD.size : HEAD.size + count * RANGE.size])
        return cls(region, tuple(MmapArea(*each) for each in ranges), open_flags)


def check(regions: Sequence[Region]) -> None:
    """Raise VfioUserError (ENOTSUP) if no region has areas, or if this process cannot make dma-bufs."""
    if not any(region.fd is not None for region in regions):
        raise VfioUserError(f"{_NAME}: this device has no areas", errno.ENOTSUP)
    os.close(_udmabuf())


def export(request: DmaBufRequest, regions: Sequence[Region]) -> int:
    """A dma-buf of the ranges, one after the other, which the caller owns.

    Raises VfioUserError: EINVAL for a range that does not lie in an area or is not of whole pages, ENOTSUP as
    :func:`check`, and what udmabuf says.
    """
    region = regions[request.region] if request.region < len(regions) else None
    if region is None or region.fd is None:
        raise ProtocolError(f"{_NAME}: region_index {request.region} has no areas")
    for offset, length in request.ranges:
        if not length or (offset | length) % mmap.PAGESIZE or not _inside(offset, length, region.info.areas):
            raise ProtocolError(f"{_NAME}: {offset:#x}+{length:#x} is not of whole pages inside an area")
    items = (_ITEM.pack(region.fd, 0, region.info.offset + offset, length) for offset, length in request.ranges)
    argument = bytearray(_LIST.pack(_CLOEXEC, len(request.ranges)) + b"".join(items))
    device = _udmabuf()
    try:
        return int(fcntl.ioctl(device, CREATE_LIST, argument))
    except OSError as error:
        raise VfioUserError(f"{_NAME}: udmabuf: {error.strerror}", error.errno or errno.EIO) from None
    finally:
        os.close(device)


def _udmabuf() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = f"{_NAME}: {DEVICE}: {error.strerror} (it needs CONFIG_UDMABUF, and a process outside a box)"
        raise VfioUserError(why, errno.ENOTSUP) from None


def _inside(offset: int, length: int, areas: Sequence[MmapArea]) -> bool:
    return any(area.offset <= offset and offset + length <= area.offset + area.size for area in areas)
