"""The storage of emulated disks: a raw file, a block device, or memory.

A file and a block device are a file descriptor here. Their data moves by ``preadv`` and ``pwritev`` between the
descriptor and views of guest memory. A disk in memory is a mapping, and its data is copied from one mapping to the
other.
"""

from bellwire.storage.disk import LARGEST, Disk, StorageError, check_blocks
from bellwire.storage.kept import KeptDisks
from bellwire.storage.memory import MemoryDisk

__all__ = ["LARGEST", "Disk", "KeptDisks", "MemoryDisk", "StorageError", "check_blocks"]
