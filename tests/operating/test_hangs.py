"""A worker that gets on with nothing of what its client wants is replaced before the client gives up."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from operating.instance import HANG, PLAIN, Instance, connect, read, write
from vfio_user import RemoteError

LIMIT = 'device = "probe"\nhang-timeout = 1\n'


def test_a_hook_that_hangs_is_given_up_and_its_command_fails(daemon: Instance) -> None:
    name = daemon.add(LIMIT)
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        with pytest.raises(RemoteError) as refused:
            write(client, HANG, 1)
        assert refused.value.errno == errno.EIO
        assert "it hung for 1." in events.until("hung", name)["fields"]["text"]
        events.until("taken-over", name)
        assert "it hung for 1." in daemon.describe(name)["hand_overs"]["reason"]


def test_a_posted_write_whose_hook_hangs_is_not_done_again(daemon: Instance) -> None:
    name = daemon.add(LIMIT)
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, HANG, 1, posted=True)
        events.until("taken-over", name)
        read(client, PLAIN)
        assert daemon.describe(name)["hand_overs"]["count"] == 1


def test_a_stopped_worker_is_replaced_once_its_client_wants_something(daemon: Instance) -> None:
    name = daemon.add(LIMIT)
    with connect(daemon.socket(name)) as client, daemon.monitor(name) as events:
        write(client, PLAIN, 42)
        os.kill(daemon.pid(name), signal.SIGSTOP)
        assert read(client, PLAIN) == 42
        assert "a signal had stopped it for 1." in events.until("hung", name)["fields"]["text"]


def test_a_stopped_worker_is_replaced_once_it_is_to_move(daemon: Instance) -> None:
    name = daemon.add(LIMIT)
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        os.kill(daemon.pid(name), signal.SIGSTOP)
        daemon.call("Move", name=name)
        assert read(client, PLAIN) == 42
        assert "a signal had stopped it for 1." in daemon.describe(name)["hand_overs"]["reason"]
