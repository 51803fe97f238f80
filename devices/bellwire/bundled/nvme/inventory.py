"""The namespaces at the start: those of the options, and those in the store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from bellwire.bundled.nvme.namespace import FORMATS, Namespace
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.store import SpaceRecord, Store
from bellwire.storage import Disk, StorageError


def identity(controller: uuid.UUID, nsid: int, number: int = 0) -> uuid.UUID:
    """The UUID of a namespace, which stays the same over restarts. ``number`` counts those that the host makes."""
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
            elif found is None:
                spaces.append(Namespace(nsid, disk, block_size, identity(controller, nsid)))
            elif found.number:
                raise StorageError(
                    f"store {store.folder}: the guest has made namespace {nsid}, and options name another one: "
                    "start with fewer images"
                )
            else:
                spaces.append(_known(found, disk, controller))
        for found in known.values():
            if found.number:
                _check_size(store, found)
                made.append(store.disk(found.nsid, found.size, 1 << FORMATS[found.lba_format], direct=direct))
                spaces.append(_known(found, made[-1], controller))
    except BaseException:
        for disk in made:
            disk.close()
        raise
    return Namespaces(spaces, spare=spare, retired=retired)


def _known(found: SpaceRecord, disk: Disk, controller: uuid.UUID) -> Namespace:
    """A namespace that is in the store."""
    return Namespace(
        found.nsid,
        disk,
        1 << FORMATS[found.lba_format],
        identity(controller, found.nsid, found.number),
        attached=found.attached,
        number=found.number,
        lost=[(start, count) for start, count in found.lost if count],
    )


def _check_size(store: Store, found: SpaceRecord) -> None:
    """Refuse a size in the store that is not possible: somebody has edited the file."""
    if found.size < 1 << FORMATS[found.lba_format]:
        raise StorageError(f"store {store.folder}: namespace {found.nsid} of {found.size} bytes has no block")


def write_down(store: Store, namespaces: Namespaces) -> None:
    """Write the namespaces to the record of the store."""
    store.record.spaces = [
        SpaceRecord(
            space.nsid, FORMATS.index(space.shift), space.number, space.assigned, space.disk.size if space.made else 0,
            space.lost.ranges,
        )
        for space in namespaces.allocated
    ]  # fmt: skip
