"""How a device's author sees what goes on in a worker of the daemon's."""

from __future__ import annotations

import re

import pytest

from operating.instance import PLAIN, Instance, connect, read, write
from vfio_user import RemoteError

STOPS = """
from bellwire import Bar, PciDevice

class Stops(PciDevice, vendor=0x1234, device=0x0002, class_code=0x088000):
    mmio = Bar(0, size=4096)
    plain = mmio.reg(0x00)
    stop = mmio.reg(0x04)

    @stop.write
    def stop_here(self, _: int) -> None:
        breakpoint()
"""


def test_breakpoint_says_what_to_do_and_the_device_lives_on(daemon: Instance) -> None:
    (daemon.plugins / "stops.py").write_text(STOPS)
    since = daemon.now()
    name = daemon.add('device = "stops"')
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        with pytest.raises(RemoteError):
            write(client, 0x04, 1)
        write(client, PLAIN, 7)
        assert read(client, PLAIN) == 7
    said = daemon.said("breakpoint():", since)
    expected = rf"stops\.py:11: breakpoint\(\): a worker has no terminal: stop {name}, .*bellwire run --debug"
    assert re.search(expected, said), said
    assert daemon.pid(name) == pid


def test_at_debug_level_a_worker_tells_what_its_device_does(daemon: Instance) -> None:
    since = daemon.now()
    loud, quiet = daemon.add('device = "probe"\nlog-level = "debug"'), daemon.add('device = "probe"')
    for name in (quiet, loud):
        with connect(daemon.socket(name)) as client:
            write(client, PLAIN, 7)
            read(client, PLAIN)
    written = daemon.said(f"[{loud}] DEBUG bellwire.device.probe: write   plain", since)
    assert "plain = 0x00000007  BAR0+0x0" in written
    assert f" [{loud}] " in daemon.said("read    plain = 0x00000007  BAR0+0x0", since)
    assert f"[{quiet}] DEBUG" not in daemon.log
