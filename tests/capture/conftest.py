from __future__ import annotations

import pytest

from bellwired.guest.archive import ArchiveError
from capture.tshark import Tshark, fetch_tshark


@pytest.fixture(scope="session")
def tshark() -> Tshark:
    try:
        return fetch_tshark()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no tshark could be provided: {error}")
