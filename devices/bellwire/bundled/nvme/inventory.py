"""Which namespaces there are: those that the device is started with, and what the store knows of them and others."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from bellwire.bundled.nvme.lost_blocks import MOST_RANGES
from bellwire.bundled.nvme.namespace import FORMATS, Namespace
from bellwire.bundled.nvme.namespaces import MOST_IDS, Namespaces
from bellwire.bundled.nvme.store import SpaceRecord, Store
from bellwire.storage import Disk, StorageError


def identity(controller: uuid.UUID, nsid: int, number: int = 0) -> uuid.UUID:
    """The name of a namespace: the same each time for the same one; ``number`` counts those that the host makes."""
    return uuid.uuid5(controller, f"{nsid}.{number}" if number else str(nsid))


def take_stock(
    store: Store, originals: Sequence[Disk], block_size: int, controller: uuid.UUID, *, spare: int, direct: bool
) -> Namespaces:
    """``originals`` are numbered from 1; ``block_size`` is theirs unless the host has formatted them.

    A StorageError where the store says what cannot be; the disks that were opened here are closed then.
    """
    record = store.record
    known = {space.nsid: space for space in record.spaces}
    spaces: list[Namespace] = []
    retired: list[Disk] = []
    made: list[Disk] = []
    try:
        for nsid, disk in enumerate(originals, 1):
            found = known.pop(nsid, None) if nsid not in record.deleted else None
            if nsid in record.deleted:
                retired.append(disk)
            elif found is None or found.number:
                spaces.append(Namespace(nsid, disk, block_size, identity(controller, nsid)))
            else:
                spaces.append(_known(found, disk, controller))
        for found in known.values():
            if found.number:
                _check(found)
                made.append(store.disk(found.nsid, found.size, 1 << found.shift, direct=direct))
                spaces.append(_known(found, made[-1], controller))
        if len({space.nsid for space in spaces}) < len(spaces):
            raise StorageError(f"store {store.folder}: two namespaces have one ID")
    except BaseException:
        for disk in made:
            disk.close()
        raise
    return Namespaces(spaces, spare=spare, retired=retired)


def _known(found: SpaceRecord, disk: Disk, controller: uuid.UUID) -> Namespace:
    """One that the store knows."""
    _check(found)
    return Namespace(
        found.nsid,
        disk,
        1 << found.shift,
        identity(controller, found.nsid, found.number),
        attached=found.attached,
        number=found.number,
        lost=[(start, count) for start, count in found.lost if start >= 0 and count > 0],
    )


def _check(found: SpaceRecord) -> None:
    """What the store says may have been edited."""
    good = 0 < found.nsid <= MOST_IDS and found.shift in FORMATS
    if not good or (found.number and found.size < 1 << found.shift):
        raise StorageError(f"the store says of namespace {found.nsid} what cannot be: {found}")
    if len(found.lost) > MOST_RANGES:
        raise StorageError(f"the store says of namespace {found.nsid} that it has lost too much")


def write_down(store: Store, namespaces: Namespaces) -> None:
    """Put the namespaces into the store's record."""
    store.record.spaces = [
        SpaceRecord(
            space.nsid, space.shift, space.number, space.attached, space.disk.size if space.made else 0,
            space.lost.ranges,
        )
        for space in namespaces.allocated
    ]  # fmt: skip
