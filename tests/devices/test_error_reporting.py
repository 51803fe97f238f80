"""AER: what a device that reports an error sets, and which message goes out (PCIe 6.0 §6.2.4, §6.2.5, §7.8.4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import Aer, CorrectableError, ErrorMessage, PciDevice, UncorrectableError
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance
from vfio_user import IrqIndex

HEADER = bytes(range(16))
ALL_MESSAGES = 0xF


class Faulty(PciDevice, vendor=0x1234, device=0xAE12, class_code=0x088000):
    """Reports errors."""

    errors = Aer(ecrc=True)


TestFaulty = conformance(Faulty)


@pytest.fixture
def guest() -> Iterator[Guest[Faulty]]:
    """A guest that has enabled all messages."""
    with Guest(Faulty) as guest:
        guest.config_write(express(guest) + pci.DEVICE_CONTROL, ALL_MESSAGES, 2)
        yield guest


def express(guest: Guest[Faulty]) -> int:
    return guest.device.core.config.at[pci.EXPRESS]


def detected(guest: Guest[Faulty]) -> int:
    return guest.config_read(express(guest) + pci.DEVICE_STATUS, 2)


def first(guest: Guest[Faulty]) -> int:
    return guest.read(Faulty.errors.control) & 0x1F


def logged(guest: Guest[Faulty]) -> list[int]:
    return [guest.read(word) for word in Faulty.errors.header_log]


def test_a_correctable_error_sets_its_status(guest: Guest[Faulty]) -> None:
    assert guest.device.errors.report(CorrectableError.BAD_TLP) is ErrorMessage.CORRECTABLE
    assert guest.read(Faulty.errors.correctable_status) == CorrectableError.BAD_TLP
    assert detected(guest) == 0x1
    guest.write(Faulty.errors.correctable_status, CorrectableError.BAD_TLP)
    assert guest.read(Faulty.errors.correctable_status) == 0
    guest.config_write(express(guest) + pci.DEVICE_STATUS, 0x1, 2)
    assert detected(guest) == 0


def test_an_uncorrectable_error_is_logged_with_its_header(guest: Guest[Faulty]) -> None:
    message = guest.device.errors.report(UncorrectableError.POISONED_TLP, header=HEADER)
    assert message is ErrorMessage.NON_FATAL
    assert guest.read(Faulty.errors.uncorrectable_status) == UncorrectableError.POISONED_TLP
    assert first(guest) == 12
    assert logged(guest) == [0x0001_0203, 0x0405_0607, 0x0809_0A0B, 0x0C0D_0E0F]
    assert detected(guest) == 0x2


def test_the_first_error_stays_in_the_log_until_the_guest_clears_it(guest: Guest[Faulty]) -> None:
    report = guest.device.errors.report
    report(UncorrectableError.POISONED_TLP, header=HEADER)
    report(UncorrectableError.MALFORMED_TLP, header=bytes(16))
    assert (first(guest), logged(guest)[0]) == (12, 0x0001_0203)
    guest.write(Faulty.errors.uncorrectable_status, UncorrectableError.POISONED_TLP)
    report(UncorrectableError.ECRC, header=b"\xff" * 16)
    assert (first(guest), logged(guest)[0]) == (19, 0xFFFF_FFFF)


@pytest.mark.parametrize("error", UncorrectableError)
def test_the_guest_decides_which_errors_are_fatal(guest: Guest[Faulty], error: UncorrectableError) -> None:
    guest.write(Faulty.errors.uncorrectable_mask, 0)
    fatal = guest.read(Faulty.errors.uncorrectable_severity) & error
    assert guest.device.errors.report(error) is (ErrorMessage.FATAL if fatal else ErrorMessage.NON_FATAL)
    guest.write(Faulty.errors.uncorrectable_severity, ~fatal & error)
    assert guest.device.errors.report(error) is (ErrorMessage.NON_FATAL if fatal else ErrorMessage.FATAL)


def test_a_masked_error_sets_its_status_and_no_more(guest: Guest[Faulty]) -> None:
    guest.write(Faulty.errors.uncorrectable_mask, UncorrectableError.ECRC)
    guest.write(Faulty.errors.correctable_mask, CorrectableError.RECEIVER)
    assert guest.device.errors.report(UncorrectableError.ECRC, header=HEADER) is None
    assert guest.device.errors.report(CorrectableError.RECEIVER) is None
    assert guest.read(Faulty.errors.uncorrectable_status) == UncorrectableError.ECRC
    assert guest.read(Faulty.errors.correctable_status) == CorrectableError.RECEIVER
    assert logged(guest) == [0] * 4


def test_no_message_goes_out_that_the_guest_has_not_enabled(guest: Guest[Faulty]) -> None:
    guest.config_write(express(guest) + pci.DEVICE_CONTROL, 0, 2)
    report = guest.device.errors.report
    assert report(CorrectableError.BAD_DLLP) is None
    assert report(UncorrectableError.COMPLETION_TIMEOUT) is None
    assert report(UncorrectableError.MALFORMED_TLP) is None
    assert detected(guest) == 0x7
    guest.config_write(pci.COMMAND, pci.SYSTEM_ERRORS, 2)
    assert report(CorrectableError.BAD_DLLP) is None
    assert report(UncorrectableError.COMPLETION_TIMEOUT) is ErrorMessage.NON_FATAL
    assert report(UncorrectableError.MALFORMED_TLP) is ErrorMessage.FATAL


def test_an_unsupported_request_has_an_enable_of_its_own(guest: Guest[Faulty]) -> None:
    guest.config_write(express(guest) + pci.DEVICE_CONTROL, 0x7, 2)
    assert guest.device.errors.report(UncorrectableError.UNSUPPORTED_REQUEST) is None
    assert detected(guest) == 0xA
    guest.config_write(express(guest) + pci.DEVICE_CONTROL, 0xF, 2)
    assert guest.device.errors.report(UncorrectableError.UNSUPPORTED_REQUEST) is ErrorMessage.NON_FATAL


def test_an_advisory_error_is_sent_as_a_correctable_one(guest: Guest[Faulty]) -> None:
    guest.write(Faulty.errors.correctable_mask, 0)
    message = guest.device.errors.report(UncorrectableError.COMPLETER_ABORT, header=HEADER, advisory=True)
    assert message is ErrorMessage.CORRECTABLE
    assert guest.read(Faulty.errors.correctable_status) == CorrectableError.ADVISORY_NON_FATAL
    assert guest.read(Faulty.errors.uncorrectable_status) == UncorrectableError.COMPLETER_ABORT
    assert first(guest) == 15
    assert detected(guest) == 0x1


def test_an_advisory_error_is_masked_at_first(guest: Guest[Faulty]) -> None:
    assert guest.device.errors.report(UncorrectableError.COMPLETER_ABORT, advisory=True) is None
    assert guest.read(Faulty.errors.uncorrectable_status) == 0


def test_an_advisory_error_that_is_masked_as_uncorrectable_sets_its_status_and_no_log(guest: Guest[Faulty]) -> None:
    guest.write(Faulty.errors.correctable_mask, 0)
    guest.write(Faulty.errors.uncorrectable_mask, UncorrectableError.COMPLETER_ABORT)
    message = guest.device.errors.report(UncorrectableError.COMPLETER_ABORT, header=HEADER, advisory=True)
    assert message is ErrorMessage.CORRECTABLE
    assert guest.read(Faulty.errors.uncorrectable_status) == UncorrectableError.COMPLETER_ABORT
    assert (first(guest), guest.read(Faulty.errors.header_log[0])) == (0, 0)


def test_an_advisory_unsupported_request_needs_both_enables(guest: Guest[Faulty]) -> None:
    guest.write(Faulty.errors.correctable_mask, 0)
    report = guest.device.errors.report
    guest.config_write(express(guest) + pci.DEVICE_CONTROL, 0x7, 2)
    assert report(UncorrectableError.UNSUPPORTED_REQUEST, advisory=True) is None
    assert detected(guest) == 0x9
    guest.config_write(express(guest) + pci.DEVICE_CONTROL, 0xF, 2)
    assert report(UncorrectableError.UNSUPPORTED_REQUEST, advisory=True) is ErrorMessage.CORRECTABLE


def test_the_registers_survive_a_reset(guest: Guest[Faulty]) -> None:
    guest.write(Faulty.errors.uncorrectable_severity, 0)
    guest.device.errors.report(UncorrectableError.MALFORMED_TLP, header=HEADER)
    guest.reset()
    assert guest.read(Faulty.errors.uncorrectable_status) == UncorrectableError.MALFORMED_TLP
    assert guest.read(Faulty.errors.uncorrectable_severity) == 0
    assert (first(guest), logged(guest)[0]) == (18, 0x0001_0203)
    assert detected(guest) == 0


def test_a_snapshot_has_them(guest: Guest[Faulty]) -> None:
    guest.device.errors.report(CorrectableError.REPLAY_TIMEOUT)
    with Guest(Faulty) as other:
        other.restore(guest.snapshot())
        assert other.read(Faulty.errors.correctable_status) == CorrectableError.REPLAY_TIMEOUT


def test_the_client_is_stopped_only_if_the_device_asks_for_it(guest: Guest[Faulty]) -> None:
    report = guest.device.errors.report
    report(UncorrectableError.MALFORMED_TLP)
    assert not guest.interrupts
    report(UncorrectableError.MALFORMED_TLP, stop_client=True)
    assert guest.interrupts == {(IrqIndex.ERR, 0): 1}
    guest.write(Faulty.errors.uncorrectable_mask, UncorrectableError.MALFORMED_TLP)
    report(UncorrectableError.MALFORMED_TLP, stop_client=True)
    report(CorrectableError.BAD_TLP, stop_client=True)
    assert guest.interrupts == {(IrqIndex.ERR, 0): 1}


def test_what_is_not_one_error_is_refused(guest: Guest[Faulty]) -> None:
    report = guest.device.errors.report
    with pytest.raises(ValueError, match=r"Faulty\.errors: one error is reported at a time"):
        report(CorrectableError.BAD_TLP | CorrectableError.BAD_DLLP)
    with pytest.raises(ValueError, match="a header has 16 bytes, not 3"):
        report(UncorrectableError.ECRC, header=b"abc")


def test_checksums_can_be_turned_on_only_if_the_device_has_them(guest: Guest[Faulty]) -> None:
    class Plain(PciDevice, vendor=0x1234, device=0xAE13, class_code=0x088000):
        errors = Aer()

    for kind, able, on in ((Faulty, 0x0A0, 0x1E0), (Plain, 0, 0)):
        with Guest(kind) as other:
            assert other.read(kind.errors.control) == able
            other.write(kind.errors.control, 0xFFFF_FFFF)
            assert other.read(kind.errors.control) == on


def test_the_bits_of_the_registers_have_names(guest: Guest[Faulty]) -> None:
    errors = Faulty.errors
    assert errors.uncorrectable_mask.meaning(guest.read(errors.uncorrectable_mask)) == "INTERNAL"
    assert errors.correctable_status.meaning(CorrectableError.BAD_TLP) == "BAD_TLP"
