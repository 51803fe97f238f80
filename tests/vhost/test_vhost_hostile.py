"""A back end that says anything at any time: the device lives on, and its driver can always reset it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellwire.bundled.vhost import Vhost
from bellwire.model import capabilities as pci
from bellwire.vhost import connection
from bellwire.vhost.errors import BackendError
from bellwire.vhost.messages import HEADER, Request
from bellwire.virtio import Status
from vhost.program import Program
from vhost.test_vhost_device import Attach, Start, answers, until
from virtio.driver import Driver

LIES = st.dictionaries(
    st.sampled_from(Request),
    st.one_of(
        st.just(b""),
        st.binary(min_size=1, max_size=40),
        st.builds(
            lambda request, flags, data: HEADER.pack(request, flags, len(data)) + data,
            st.sampled_from(Request),
            st.sampled_from([1, 5, 13]),
            st.binary(max_size=40),
        ),
    ),
    max_size=3,
)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience with back ends."""
    monkeypatch.setattr(connection, "PATIENCE", 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at_first=LIES, later=LIES)
def test_whatever_a_back_end_says_the_device_lives_on(
    tmp_path_factory: pytest.TempPathFactory, at_first: dict[Request, bytes], later: dict[Request, bytes]
) -> None:
    place = tmp_path_factory.mktemp("hostile") / "sock"
    program = Program(place, answer=at_first.get)
    try:
        try:
            driver = Driver(Vhost, backend=f"unix:{place}", type="rng")
        except BackendError:
            return
        with driver:
            for lies in (at_first, later):
                program.answer = lies.get
                if driver.negotiate():
                    driver.add_queue(0).send(b"ab", write=2)
                    driver.status |= Status.DRIVER_OK
                driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
                driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE | pci.BUS_MASTER, 2)
                driver.config(0, 4)
                driver.guest.poll()
                driver.guest.advance(0.3)
            program.answer = lambda _: None
            until(driver, lambda: driver.device.plane.backend is not None)  # type: ignore[attr-defined]
            driver.start()
            driver.queues[0].send(b"ab", write=2)
            assert answers(driver) == [b"ba"]
    finally:
        program.crash()


def test_a_back_end_that_hangs_is_given_up_and_looked_for_again(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    driver = attach()
    driver.start()
    monkeypatch.setattr(connection, "PATIENCE", 0.5)  # it has come to life with all the time that it needs
    program.answer = lambda request: b"" if request is Request.GET_VRING_BASE else None
    driver.status = Status(0)
    assert "the back end does not answer GET_VRING_BASE in time" in caplog.text
    program.answer = lambda _: None
    until(driver, lambda: "a back end is there again" in caplog.text)


def test_one_access_of_the_guest_waits_for_all_rings_no_longer_than_for_one(
    start: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    driver = attach(type="42", queues=8)
    driver.start(queues=range(8))
    monkeypatch.setattr(connection, "PATIENCE", 0.05)
    slow = itertools.chain([0.04] * 8)

    def answer(request: Request) -> None:
        if request is Request.SET_VRING_CALL:
            program.pause(next(slow))

    program.answer = answer
    driver.guest.config_write(driver.device.core.config.at[pci.MSIX] + 2, 0xC000, 2)
    assert program.said.count("SET_VRING_CALL") - 8 <= 2


def test_memory_that_a_back_end_will_not_forget_ends_the_connection(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture, refusal: Callable[[Request], bytes]
) -> None:
    program = start()
    driver = attach()
    driver.start()
    program.answer = lambda request: refusal(request) if request is Request.REM_MEM_REG else None
    driver.device.core.join(False)
    assert "takes memory back, but the back end refuses REM_MEM_REG" in caplog.text


def test_a_channel_that_is_no_channel_ends_the_connection(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    program = start()
    driver = attach()
    program.tell(2, flags=5)
    until(driver, lambda: "a reply came on the back end's channel" in caplog.text)
    until(driver, lambda: "a back end is there again" in caplog.text)
