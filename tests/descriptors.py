"""Room for descriptors: a test that opens thousands of them raises this process's limit."""

from __future__ import annotations

import resource

import pytest


def make_room(descriptors: int) -> None:
    """Let this process open so many. Only root can raise the hard limit; otherwise the test is skipped, and says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, descriptors), max(hard, descriptors)))
    except ValueError:
        pytest.skip(f"{descriptors} descriptors are needed, and the hard limit is {hard}: raise it (ulimit -Hn)")
