"""The storage of emulated disks: a raw file, a block device, or memory.

All three are a file descriptor here; memory is an anonymous file. So all reads and writes are ``preadv`` and
``pwritev`` between the descriptor and views of guest memory, without a copy.
"""

from bellwire.storage.disk import LARGEST, Disk, StorageError, check_blocks

__all__ = ["LARGEST", "Disk", "StorageError", "check_blocks"]
