"""Decides whether users other than the owner can change a file or a folder, and names users in messages."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat

_ACL = "system.posix_acl_access"


def trusted_users() -> set[int]:
    """Root and the process's own user.

    In a user namespace that does not map root, the owner of / stands for root: it controls everything there.
    """
    return {0, os.geteuid(), os.stat("/").st_uid}


def asking_users() -> set[int]:
    """Those users, and the one who has called sudo: what root does then is what that user has asked for."""
    sudo = os.environ.get("SUDO_UID", "")
    return trusted_users() | ({int(sudo)} if sudo.isdecimal() and os.geteuid() == 0 else set())


def user(uid: int) -> str:
    """A user as messages name it, as in ``user 65534 (nobody)``."""
    with contextlib.suppress(KeyError):
        return f"user {uid} ({pwd.getpwuid(uid).pw_name})"
    return f"user {uid}"


def others_may_write(status: os.stat_result, fd: int | None = None) -> bool:
    """Whether a user other than the owner may write the file. The owner's private group does not count.

    With ``fd``, a descriptor of the file, an access control list counts as others: it may name any user.
    """
    if not status.st_mode & stat.S_IWGRP:
        return bool(status.st_mode & stat.S_IWOTH)
    return bool(status.st_mode & stat.S_IWOTH) or not _private_group(status) or (fd is not None and _has_acl(fd))


def _private_group(status: os.stat_result) -> bool:
    """Whether the group has the owner's name and no other member, like the one that distributions give each user."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (
        group.gr_name == owner.pw_name
        and set(group.gr_mem) <= {owner.pw_name}
        and all(other.pw_uid == owner.pw_uid for other in pwd.getpwall() if other.pw_gid == group.gr_gid)
    )


def _has_acl(fd: int) -> bool:
    """Whether the file has an access control list (acl(5))."""
    try:
        os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    except OSError:
        return False
    return True
