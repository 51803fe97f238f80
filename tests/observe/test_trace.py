"""The trace: a record for each event, in the words of the device's author."""

from __future__ import annotations

import logging
from enum import IntFlag

import pytest

from bellwire import Bar, MsiX, OptionError, PciDevice
from bellwire.filters.builtin.trace import Trace
from bellwire.testing.guest import Guest


class Status(IntFlag):
    READY = 1
    BUSY = 2


class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    """Copies 16 bytes."""

    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Status, reset=Status.READY)
    source = mmio.reg(0x08, size=8)
    go = mmio.doorbell(0x20)
    tail = mmio.doorbell(0x24, value=True)

    @go.ring
    def start(self) -> None:
        self.dma.write(self.source + 32, self.dma.read(self.source, 24))
        self.irq[1].trigger()

    @tail.ring
    def moved(self, value: int) -> None:
        raise RuntimeError("lost my way")


def traced(**arguments: object) -> tuple[Guest[Copier], Trace]:
    trace = Trace(**{"log": False} | arguments)
    return Guest(Copier, filters=[trace]), trace


def lines(trace: Trace) -> list[str]:
    """The records as text, without the time."""
    return [record.line()[16:] for record in trace.last(100)]


def test_a_session_reads_like_a_story() -> None:
    guest, trace = traced(without="hook config client map reset")
    with guest:
        guest.memory[0x1000:0x1018] = bytes(range(24))
        guest.write(Copier.source, 0x1000)
        guest.ring(Copier.go)
        guest.read(Copier.status)
        assert lines(trace) == [
            "write   source = 0x0000000000001000  BAR0+0x8",
            "ring    go by message  BAR0+0x20",
            "dma     read 24 bytes: 00010203 04050607 08090a0b 0c0d0e0f ...  0x1000",
            "dma     write 24 bytes: 00010203 04050607 08090a0b 0c0d0e0f ...  0x1020",
            "irq     MSI-X 1 sent",
            "read    status = 0x00000001 READY  BAR0+0x0",
        ]


def test_hooks_have_their_arguments_and_the_time_that_they_took() -> None:
    guest, trace = traced(only="hook")
    with guest:
        guest.ring(Copier.go)
        record = trace.last(1)[0]
        assert (record.name, record.meaning) == ("start", "()")
        assert 0 < record.took < 10


def test_config_space_resets_clients_and_memory_have_records() -> None:
    guest, trace = traced()
    with guest:
        guest.config_read(0, 4)
        guest.reset()
        kinds = {(record.kind, record.verb) for record in trace.last(100)}
        assert {("config", "read"), ("reset", "")} <= kinds


def test_what_device_code_raises_stands_beside_the_event_and_the_log_gets_what_led_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guest, _ = traced(without="config")
    with guest, pytest.raises(RuntimeError, match="lost my way"):
        guest.ring(Copier.tail, 7)
    (said,) = [record.getMessage() for record in caplog.records if "last events" in record.getMessage()]
    assert said.startswith("the last events before moved failed:")
    assert said.endswith("ms")
    assert "ring    tail = 0x00000007 by message" in said
    assert "hook    moved(0x7) ! RuntimeError: lost my way" in said


def test_with_log_each_record_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guest, _ = traced(only="status", log=True)
    with guest:
        guest.read(Copier.status)
    assert [record.getMessage() for record in caplog.records] == ["read    status = 0x00000001 READY  BAR0+0x0"]


def test_it_keeps_the_latest_records() -> None:
    guest, trace = traced(only="source", keep=16)
    with guest:
        for value in range(40):
            guest.write(Copier.source, value)
        assert [record.value for record in trace.last(100)] == list(range(24, 40))


def test_a_rate_limit_leaves_out_the_rest_of_a_second_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("bellwire.filters.observing.recorder.time.time", lambda: now)
    guest, trace = traced(only="source", rate=3)
    with guest:
        for value in range(5):
            guest.write(Copier.source, value)
        now = 1001.0
        guest.write(Copier.source, 99)
        assert [record.value for record in trace.last(100)] == [0, 1, 2, None, 99]
        assert trace.last(2)[0].detail == "2 events so far were more than 3 a second"
        assert trace.report() == {"records": 5, "lost": 2}


def test_the_log_tells_what_the_rate_has_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("bellwire.filters.observing.recorder.time.time", lambda: now)
    caplog.set_level(logging.INFO)
    guest, _ = traced(only="source", rate=1, log=True)
    with guest:
        guest.write(Copier.source, 1)
        guest.write(Copier.source, 2)
        now = 1001.0
        guest.write(Copier.source, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "write   source = 0x0000000000000001  BAR0+0x8",
        "lost    1 events so far were more than 1 a second",
        "write   source = 0x0000000000000003  BAR0+0x8",
    ]


@pytest.mark.parametrize(
    ("only", "without", "kept"),
    [
        ("status", "", ["status"]),
        ("mmio.status", "", ["status"]),
        ("so*", "", ["source"]),
        ("mmio", "source", ["status"]),
        ("write", "", ["source"]),
        ("irq.sent+go", "", ["go", "MSI-X 1"]),
        ("", "mmio ring dma irq hook config client map reset", []),
        ("mmio.*", "dma", ["source", "go", "status"]),
    ],
)
def test_terms_say_which_records_are_kept(only: str, without: str, kept: list[str]) -> None:
    guest, trace = traced(only=only, without=without)
    with guest:
        guest.write(Copier.source, 0x1000)
        guest.ring(Copier.go)
        guest.read(Copier.status)
        assert [record.name for record in trace.last(100)] == kept


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"only": "stauts"}, "did you mean status"),
        ({"without": "xyzzy"}, "kinds are read, write"),
        ({"only": "queue*"}, "kinds are read, write"),
        ({"only": "irq.write"}, "neither a kind"),
    ],
)
def test_a_term_that_can_never_match_is_refused(terms: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Guest(Copier, filters=[Trace(**terms)])


def test_without_records_of_dma_guest_memory_is_used_in_place() -> None:
    guest, _ = traced(only="irq")
    with guest:
        assert guest.device.dma.map(0x1000, 16)
