"""The version of Bellwire."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """The version of the installed package."""
    try:
        return version("bellwire")
    except PackageNotFoundError:
        return "(not installed)"
