"""``bellwire poke``: registers, doorbells and interrupts of a running device, by hand."""

from __future__ import annotations

import json

import pytest

from operating.conftest import Run
from operating.instance import Instance

PLUGIN = '''
from enum import IntFlag
from bellwire import Bar, MsiX, PciDevice

class Bits(IntFlag):
    DONE = 1
    ERROR = 2

class Handy(PciDevice, vendor=0x1234, device=0x0003, class_code=0x088000):
    """For hands."""
    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Bits)
    seen = mmio.reg(0x04, size=2)
    fixed = mmio.reg(0x08, access="constant", reset=7)
    acked = mmio.reg(0x0C, access="w1c", reset=0xFF)
    go = mmio.doorbell(0x10)
    value = mmio.doorbell(0x20, value=True)
    only = mmio.doorbell(0x30, match=5)

    @status.write
    def status_written(self, value: int) -> None:
        self.seen = 0x100 | value

    @go.ring
    def gone(self) -> None:
        self.seen = 0x200

    @value.ring
    def valued(self, value: int) -> None:
        self.seen = value

    @only.ring
    def matched(self) -> None:
        self.seen = 0x300
'''


@pytest.fixture
def handy(daemon: Instance) -> str:
    (daemon.plugins / "handy.py").write_text(PLUGIN)
    return daemon.add('device = "handy"')


def values(run: Run, name: str) -> dict[str, int]:
    return {each["name"]: each["value"] for each in json.loads(run("regs", name, "--json")[1])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status=0x3"], {"status": 3, "seen": 0}),
        (["status=DONE|ERROR"], {"status": 3, "seen": 0}),
        (["--guest", "status=ERROR"], {"status": 2, "seen": 0x102}),
        (["acked=0xf"], {"acked": 0xF}),
        (["--guest", "acked=0xf"], {"acked": 0xF0}),
        (["go"], {"seen": 0x200}),
        (["value=0x42"], {"seen": 0x42}),
        (["only"], {"seen": 0x300}),
        (["go", "status=1"], {"seen": 0x200, "status": 1}),
    ],
)
def test_it_does_what_the_device_or_a_guest_would(
    run: Run, handy: str, words: list[str], expected: dict[str, int]
) -> None:
    assert run("poke", handy, *words) == (0, "", "")
    assert expected.items() <= values(run, handy).items()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch=1"], "no register or doorbell 'nosuch'"),
        (["status"], "a value is missing"),
        (["status=MAYBE"], "'MAYBE' is neither a number nor one of DONE, ERROR"),
        (["seen=0x10000"], "does not fit in its 2 bytes"),
        (["seen=-1"], "does not fit in its 2 bytes"),
        (["fixed=1"], "fixed is constant"),
        (["only=6"], "only is not rung by 0x6, only by 0x5"),
        (["status="], "expected REGISTER=VALUE"),
        (["--interrupt", "0"], "turned neither MSI-X nor MSI on"),
    ],
)
def test_it_refuses_what_the_device_has_not(run: Run, handy: str, words: list[str], said: str) -> None:
    status, out, error = run("poke", handy, *words)
    assert (status, out) == (1, "")
    assert said in error


def test_it_wants_something_to_do(run: Run, handy: str) -> None:
    with pytest.raises(SystemExit):
        run("poke", handy)
