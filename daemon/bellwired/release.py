"""Which version of Bellwire this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """As installed."""
    try:
        return version("bellwire")
    except PackageNotFoundError:
        return "(not installed)"
