"""docs/lspci.md has what lspci shows of each bundled device."""

from __future__ import annotations

import pytest

import lspci_page
from bellwired.guest.toolbox import Toolbox

pytestmark = pytest.mark.guest


def test_the_page_is_what_lspci_shows(tools: Toolbox) -> None:
    assert lspci_page.PAGE.read_text() == lspci_page.page(tools), "make lspci"
