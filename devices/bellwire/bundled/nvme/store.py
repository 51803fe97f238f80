"""The store: what outlives the device: namespaces, their formats, lost blocks, results and logs (docs/devices.md).

It is a folder with ``nvme.json``, and ``namespace-N.img`` for each namespace that the host has made. Without a folder
it is in memory, and lost at the end. A snapshot contains neither the store nor the images: they are media.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from bellwire.paths import Place, make_folders, why
from bellwire.storage import Disk, KeptDisks, StorageError

if TYPE_CHECKING:
    from bellwire import PciDevice

NAME = "nvme.json"
RECORD = "nvme record"
"""The name by which a store in memory is kept for a successor."""
LARGEST = 64 << 20
"""The limit of its size in bytes. A host can fill far less."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
SelfTestResult = Annotated[bytes, msgspec.Meta(min_length=28, max_length=28)]
"""The result of one self-test (§5.14.1.6)."""
PersistentEvent = Annotated[bytes, msgspec.Meta(min_length=24, max_length=4096)]
"""One persistent event: a header and data (§5.14.1.13)."""


class SpaceRecord(msgspec.Struct, omit_defaults=True):
    """One namespace. ``number`` and ``size`` are for those that the host has made: their blocks lie in the store."""

    nsid: Annotated[int, msgspec.Meta(ge=1, le=256)]
    lba_format: Annotated[int, msgspec.Meta(ge=0, le=1)]
    number: Count
    attached: bool = True
    size: Count = 0
    lost: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=1024)] = []


class SanitizeRecord(msgspec.Struct, omit_defaults=True):
    """The most recent sanitize operation: SSTAT and SCDW10 (§5.14.1.16.2)."""

    status: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    action: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    failure_mode: bool = False


class Record(msgspec.Struct, omit_defaults=True):
    """The content of the store. A user may have edited the file, so reading it checks all bounds."""

    version: Literal[1] = 1
    spaces: list[SpaceRecord] = []
    deleted: list[Count] = []
    """IDs of namespaces that the device is started with, and that the host has deleted."""
    made: Count = 0
    """The number of namespaces ever made, so that no identifier is used twice."""
    power_cycles: Count = 0
    sanitize: SanitizeRecord = msgspec.field(default_factory=SanitizeRecord)
    self_tests: Annotated[list[SelfTestResult], msgspec.Meta(max_length=20)] = []
    events: Annotated[list[PersistentEvent], msgspec.Meta(max_length=4096)] = []
    telemetry: Annotated[bytes, msgspec.Meta(max_length=1 << 20)] = b""
    telemetry_generation: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    telemetry_news: bool = False


class Store:
    """A ``record``, and the folder that keeps it. A missing ``folder`` is created; it is locked until :meth:`close`."""

    def __init__(self, folder: Path | None, device: PciDevice | None = None) -> None:
        """A store in memory is kept for the process that goes on with ``device``, but for its logs."""
        self.folder = folder
        self.disks = KeptDisks(device)
        self._device = device
        self._remembered = b""
        self.record = Record()
        self._lock = threading.Lock()
        self._encoded = self._written = 0
        self._fd = -1
        if folder is not None:
            self._open(folder)
        elif device is not None and (found := device.kept_file(RECORD)) is not None:
            with open(found[0], "rb") as file:
                self.record = _decoded(file.read(LARGEST), "of the process before")

    def _open(self, folder: Path) -> None:
        try:
            make_folders(folder.parent)
            with Place(folder) as place:
                place.make_folder(0o700)
                self._fd = place.open_folder()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with Place.inside(self._fd, folder / NAME) as place:
                text = _read(place)
        except FileNotFoundError:
            return
        except BlockingIOError:
            self.close()
            raise StorageError(f"store {folder}: another device uses it") from None
        except OSError as error:
            self.close()
            raise StorageError(f"store {error.filename or folder}: {why(error)}") from error
        except StorageError:
            self.close()
            raise
        try:
            self.record = _decoded(text, f"{folder / NAME}")
        except StorageError:
            self.close()
            raise

    def encode(self) -> tuple[int, bytes]:
        """The present record as bytes, with a number for :meth:`write`."""
        self._encoded += 1
        return self._encoded, msgspec.json.encode(self.record)

    def write(self, number: int, data: bytes) -> None:
        """Write a record of :meth:`encode`, unless a later one is written. Any thread may call it. Raises OSError."""
        if self.folder is None:
            return
        with self._lock:
            if number <= self._written:
                return
            with Place.inside(self._fd, self.folder / NAME) as place:
                place.replace(data, 0o600, aside=f"{NAME}.new", sync=True)
            os.fsync(self._fd)
            self._written = number

    def remember(self) -> None:
        """Keep a store in memory for a successor, if it has changed. For the device's thread."""
        data = msgspec.json.encode(msgspec.structs.replace(self.record, events=[], telemetry=b""))
        if self._device is not None and data != self._remembered:
            self._remembered = data
            with open(os.memfd_create(RECORD, os.MFD_CLOEXEC), "r+b", buffering=0) as file:
                file.write(data)
                file.seek(0)
                self._device.keep_file(RECORD, file.fileno(), lasting=True)

    def disk(self, nsid: int, size: int, block: int, *, direct: bool = False, new: bool = False) -> Disk:
        """Open the disk of a namespace that the host has made. With ``new`` it is emptied first."""
        if self.folder is None:
            return self.disks.memory(f"namespace {nsid}", size, block=block, new=new)
        path = self._path(nsid)
        if new:
            self.remove(nsid)
        elif not self._exists(path):
            raise StorageError(f"store {self.folder}: {path.name} is gone, with what is in namespace {nsid}")
        made = size if new else 0  # a format may have left a part of a block at the end
        name = f"namespace {nsid}"
        disk = self.disks.image(name, path, size=made, direct=direct, block=block, folder=self._fd, new=new)
        if disk.size != size:
            disk.close()
            raise StorageError(f"store {self.folder}: {path.name} has {disk.size} bytes, namespace {nsid} has {size}")
        return disk

    def remove(self, nsid: int) -> None:
        """Remove the file of a deleted namespace."""
        self.disks.drop(f"namespace {nsid}")
        if self.folder is not None:
            with Place.inside(self._fd, self._path(nsid)) as place:
                place.remove()

    def close(self) -> None:
        """Unlock the folder. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _exists(self, path: Path) -> bool:
        with Place.inside(self._fd, path) as place:
            return place.status() is not None

    def _path(self, nsid: int) -> Path:
        assert self.folder is not None
        return self.folder / f"namespace-{nsid}.img"


def _decoded(text: bytes, of: str) -> Record:
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StorageError(f"store {of}: {error}; remove it to begin anew") from error


def _read(place: Place) -> bytes:
    """Read a whole file, which a user may have put there. A StorageError if the store cannot have written it."""
    with open(place.open(os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST:
            raise StorageError(f"store {place.path}: {size} bytes, at most {LARGEST}; remove it to begin anew")
        return file.read(LARGEST)
