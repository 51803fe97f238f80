from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

import bed


@functools.cache
def why_not() -> str:
    return bed.why_not()


@pytest.fixture(scope="module")
def systemd() -> Iterator[bed.Bed]:
    """A systemd of the module's own, with Bellwire's files installed as a package would."""
    if reason := why_not():
        pytest.skip(f"cannot boot a systemd here: {reason}")
    with bed.booted() as booted:
        booted.install()
        yield booted
