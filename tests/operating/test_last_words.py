"""What a worker has sent before its end is read, although it has not read all that was sent to it."""

from __future__ import annotations

import pytest

from bellwired.workers import wire
from bellwired.workers.wire import Ask, Drop, Report


@pytest.mark.parametrize("peek", [False, True])
def test_a_worker_that_ends_with_an_unread_question_is_heard_to_the_end(*, peek: bool) -> None:
    manager, worker = wire.pair()
    with manager:
        with worker:
            wire.send(manager, Ask(1, "ping"))
            wire.send(worker, Drop(["map 1"]))
            wire.send(worker, Report("refused", {"error": "no"}))
        heard = []
        while (received := wire.receive(manager, peek=peek)) is not None:
            heard.append(type(received[0]))
            if peek:
                wire.discard(manager)
        assert heard == [Drop, Report]
