"""Decides whether users other than the owner can change a file or a folder."""

from __future__ import annotations

import grp
import os
import pwd
import stat


def others_may_write(status: os.stat_result) -> bool:
    """Whether a user other than the owner may write the file. The owner's private group does not count."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _private_group(status)


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
