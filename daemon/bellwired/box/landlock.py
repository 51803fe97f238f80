"""Landlock (landlock(7)): this thread, and what it starts, reaches only the files that are named here.

A right that the kernel's version of Landlock does not know yet is left out. Each version restricts more: 1 files,
2 moves between folders, 3 truncation, 4 TCP ports, 5 ioctls of devices, 6 signals to processes outside, and their
abstract sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from bellwire.paths import Place

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract sockets and signals
NEWEST = 6
"""The newest version that this module makes use of."""


class Fs(IntFlag):
    """Rights to files (LANDLOCK_ACCESS_FS_*)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


NAMES = Fs.READ_DIR
READ = Fs.READ_FILE | NAMES
WRITE = READ | Fs.WRITE_FILE | Fs.TRUNCATE | Fs.IOCTL_DEV
FOLDER = WRITE | Fs.REMOVE_DIR | Fs.REMOVE_FILE | Fs.MAKE_DIR | Fs.MAKE_REG | Fs.REFER
SOCKETS = Fs.MAKE_SOCK
LINKS = Fs.MAKE_SYM
REMOVE = Fs.REMOVE_FILE
RUN = READ | Fs.EXECUTE
_OF_FILES = Fs.EXECUTE | Fs.WRITE_FILE | Fs.READ_FILE | Fs.TRUNCATE | Fs.IOCTL_DEV
_ADDED = {2: Fs.REFER, 3: Fs.TRUNCATE, 5: Fs.IOCTL_DEV}


def version() -> int:
    """The version of the kernel's Landlock; 0 without it."""
    found: int = _libc.syscall(_CREATE, None, 0, _VERSION)
    return max(found, 0)


Rules = Iterable[tuple[Path, Fs]]


def restrict(system: Rules, named: Rules, known: int, *, network: bool = False) -> None:
    """Deny all files, except as rules say: each gives rights to a file, or to a folder with all below it.

    The paths of ``named`` rules lie where other users may meddle: untrusted links in them are not followed. ``known``
    is the kernel's version. A path that does not exist is left out. TCP is denied without ``network``. Needs
    no_new_privs. Raises OSError.
    """
    handled = Fs((Fs.IOCTL_DEV << 1) - 1)
    for since, right in _ADDED.items():
        if known < since:
            handled &= ~right
    scoped = _SCOPES if known >= 6 else 0
    attributes = struct.pack("<QQQ", handled, 0 if network or known < 4 else _TCP, scoped)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = _check(_libc.syscall(_CREATE, attributes, size, 0))
    try:
        for rules, find in ((system, _open), (named, _pin)):
            for path, rights in rules:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    _add(ruleset, find(path), rights & handled)
        _check(_libc.syscall(_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _open(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _pin(path: Path) -> int:
    with Place(path) as place:
        return place.pin()


def _add(ruleset: int, place: int, rights: Fs) -> None:
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        if rights:
            _check(_libc.syscall(_ADD, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, place), 0))
    finally:
        os.close(place)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
