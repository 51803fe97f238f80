"""Where the bytes of emulated disks lie: a raw file, a block device, or memory, all by one path.

Whatever it is, it is a file descriptor here (memory is an anonymous file), so that reading and writing are
``preadv`` and ``pwritev`` between it and views of guest memory, with no copy on the way.
"""

from bellwire.storage.disk import LARGEST, Disk, StorageError, check_blocks

__all__ = ["LARGEST", "Disk", "StorageError", "check_blocks"]
