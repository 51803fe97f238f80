"""What machines are made of: QEMU, a kernel, and what builds modules for it. Found or fetched once in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwired.testing.wanted import Wanted


class NotHere(Exception):
    """A machine cannot be had here. The message says what is missing."""


class Tools:
    """The tools of a run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def plan(self, wanted: Wanted) -> dict[str, Any]:
        """The plan of a machine, but for its devices."""
        return dict(wanted.guest)

    def build(self, module: Path) -> None:
        """Build a module."""
