"""An initramfs: files in a cpio archive of the newc kind (Linux, Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

TRAILER = "TRAILER!!!"


def archive(files: Mapping[str, bytes | Path], links: Mapping[str, str]) -> bytes:
    """``files`` (all executable) and symbolic ``links`` by their path without a leading slash, and their folders."""
    folders = {str(parent) for path in (*files, *links) for parent in PurePosixPath(path).parents if parent.name}
    entries = [_entry(number, path, stat.S_IFDIR | 0o755, b"") for number, path in enumerate(sorted(folders), 1)]
    for path, content in files.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        entries.append(_entry(len(entries) + 1, path, stat.S_IFREG | 0o755, data))
    for path, target in links.items():
        entries.append(_entry(len(entries) + 1, path, stat.S_IFLNK | 0o777, target.encode()))
    return b"".join([*entries, _entry(0, TRAILER, 0, b"")])


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    """Magic, 13 numbers of 8 hexadecimal digits, the name and its NUL, the data; each padded to 4 bytes."""
    encoded = os.fsencode(name) + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
