"""A plugin for pytest's workers: machines are near, as :mod:`plugin.near` has them."""

from __future__ import annotations

import pytest

from bellwired.testing import running
from bellwired.testing.tools import Tools
from plugin.near import Near


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Have tests get machines that are near."""
    patch.setattr(running, "Machine", Near)
    patch.setattr(Near, "machines", [])
    patch.setattr(Tools, "plan", lambda self, wanted, modules, folders: {"kernel": None, "qemu": None, **wanted.guest})
    patch.setattr(Tools, "build", lambda self, module: None)


def pytest_configure() -> None:
    stand_in(pytest.MonkeyPatch())
