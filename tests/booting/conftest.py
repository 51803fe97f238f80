from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwired.guest.agent import PROGRAM
from booting.on_host import Agent


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(PROGRAM)
    yield agent
    agent.close()
