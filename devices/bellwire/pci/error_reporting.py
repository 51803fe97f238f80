"""AER: advanced error reporting (§7.8.4). A device reports errors, as if they had happened on its link (§6.2).

The registers are set as the specification says, and the message that a root port would get is returned. It gets none:
the vfio-user protocol has no message for it. docs/qemu.md says how Linux's AER driver is told all the same.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import ExtendedCapability
from vfio_user import IrqIndex

if TYPE_CHECKING:
    from bellwire.declare.register import Register
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

SIZE = 0x2C
HEADER_BYTES = 16
_POINTER = 0x1F
_MASKED_FROM_START = 0xE000  # advisory non-fatal, corrected internal, header log overflow (§7.8.4.6)


class CorrectableError(IntFlag):
    """Errors that the hardware has corrected: the bits of Correctable Error Status (§7.8.4.5)."""

    RECEIVER = 1 << 0
    BAD_TLP = 1 << 6
    BAD_DLLP = 1 << 7
    REPLAY_ROLLOVER = 1 << 8
    REPLAY_TIMEOUT = 1 << 12
    ADVISORY_NON_FATAL = 1 << 13
    CORRECTED_INTERNAL = 1 << 14
    HEADER_LOG_OVERFLOW = 1 << 15


class UncorrectableError(IntFlag):
    """Errors that the hardware cannot correct: the bits of Uncorrectable Error Status (§7.8.4.2)."""

    DATA_LINK_PROTOCOL = 1 << 4
    SURPRISE_DOWN = 1 << 5
    POISONED_TLP = 1 << 12
    FLOW_CONTROL_PROTOCOL = 1 << 13
    COMPLETION_TIMEOUT = 1 << 14
    COMPLETER_ABORT = 1 << 15
    UNEXPECTED_COMPLETION = 1 << 16
    RECEIVER_OVERFLOW = 1 << 17
    MALFORMED_TLP = 1 << 18
    ECRC = 1 << 19
    UNSUPPORTED_REQUEST = 1 << 20
    ACS_VIOLATION = 1 << 21
    INTERNAL = 1 << 22


_FATAL = (
    UncorrectableError.DATA_LINK_PROTOCOL
    | UncorrectableError.SURPRISE_DOWN
    | UncorrectableError.FLOW_CONTROL_PROTOCOL
    | UncorrectableError.RECEIVER_OVERFLOW
    | UncorrectableError.MALFORMED_TLP
    | UncorrectableError.INTERNAL
)
"""Those that are fatal unless a guest says otherwise (§7.8.4.4)."""


class ErrorMessage(IntEnum):
    """The message that tells a root port of an error; its value is the bit that enables it in Device Control."""

    CORRECTABLE = 1 << 0
    NON_FATAL = 1 << 1
    FATAL = 1 << 2


_UNSUPPORTED_REQUEST = 1 << 3
"""Unsupported Request Reporting Enable in Device Control, and Unsupported Request Detected in Device Status."""


class Aer(ExtendedCapability):
    """``errors = Aer()``: advanced error reporting. On an instance it is an :class:`ErrorReporting`.

    ``ecrc`` says that the device can make and check end-to-end checksums.
    """

    number = 0x01
    version = 2
    title = "advanced error reporting (AER)"

    def __init__(self, *, ecrc: bool = False) -> None:
        super().__init__(SIZE)
        able, enables = (0x0A0, 0x140) if ecrc else (0, 0)
        bits, kind = self._bits, UncorrectableError
        self.uncorrectable_status = bits("uncorrectable_status", 0x04, kind, "w1c")
        self.uncorrectable_mask = bits("uncorrectable_mask", 0x08, kind, "rw", UncorrectableError.INTERNAL)
        self.uncorrectable_severity = bits("uncorrectable_severity", 0x0C, kind, "rw", _FATAL)
        self.correctable_status = bits("correctable_status", 0x10, CorrectableError, "w1c")
        self.correctable_mask = bits("correctable_mask", 0x14, CorrectableError, "rw", _MASKED_FROM_START)
        self.control = self.own("control", 0x18, access="rw", reset=able, writable=enables, sticky=True)
        self.header_log = [self.own(f"header_log{word}", 0x1C + 4 * word, sticky=True) for word in range(4)]

    def _bits(self, name: str, offset: int, kind: type[IntFlag], access: str, reset: int = 0) -> Register[int]:
        return self.own(name, offset, kind, access=access, reset=reset, writable=sum(kind), sticky=True)

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Aer: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> ErrorReporting: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Aer | ErrorReporting:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> ErrorReporting:
        """What reports the errors of an instance."""
        return ErrorReporting(core, self)


class ErrorReporting:
    """Reports errors of one device: it sets status, pointer and header log, and decides which message goes out."""

    def __init__(self, core: Core, declared: Aer) -> None:
        self._core = core
        self._declared = declared
        self._content = core.state.registers[declared]

    def report(
        self,
        error: CorrectableError | UncorrectableError,
        *,
        header: bytes = bytes(HEADER_BYTES),
        advisory: bool = False,
        stop_client: bool = False,
    ) -> ErrorMessage | None:
        """Report one error, as Figure 6-2 of §6.2.5 says.

        ``header`` are the 16 bytes of the transaction's header, for an uncorrectable error. An ``advisory`` error that
        the guest has left non-fatal is reported as a correctable one (§6.2.3.2.4). With ``stop_client`` the client's
        error interrupt is signalled if a message for an uncorrectable error goes out: QEMU stops the guest then.

        Returns the message that the root port would get; None if the guest has masked the error, or has not enabled
        the message. A ValueError if ``error`` is not exactly one error, or ``header`` does not have 16 bytes.
        """
        if int(error).bit_count() != 1:
            raise ValueError(f"{self._declared}: one error is reported at a time, not {error!r}")
        if len(header) != HEADER_BYTES:
            raise ValueError(f"{self._declared}: a header has {HEADER_BYTES} bytes, not {len(header)}")
        if isinstance(error, CorrectableError):
            return self._correctable(error)
        declared = self._declared
        fatal = bool(self._load(declared.uncorrectable_severity) & error)
        unsupported = error is UncorrectableError.UNSUPPORTED_REQUEST
        if advisory and not fatal:
            return self._advisory(error, header, unsupported)
        message = ErrorMessage.FATAL if fatal else ErrorMessage.NON_FATAL
        self._detected(message | (_UNSUPPORTED_REQUEST if unsupported else 0))
        if self._load(declared.uncorrectable_mask) & error:
            self._set(declared.uncorrectable_status, error)
            return None
        self._log(error, header)
        config = self._core.config
        if not config.system_errors:
            enabled = config.error_messages
            if not enabled & message or (unsupported and not enabled & _UNSUPPORTED_REQUEST):
                return None
        if stop_client and self._core.host is not None:
            self._core.host.signal(IrqIndex.ERR, 0)
        return message

    def _correctable(self, error: CorrectableError) -> ErrorMessage | None:
        self._detected(ErrorMessage.CORRECTABLE)
        self._set(self._declared.correctable_status, error)
        return self._correctable_message(error)

    def _advisory(self, error: UncorrectableError, header: bytes, unsupported: bool) -> ErrorMessage | None:
        """An error that is harmless where it was detected: it is logged as uncorrectable, and sent as correctable."""
        self._detected(ErrorMessage.CORRECTABLE | (_UNSUPPORTED_REQUEST if unsupported else 0))
        self._set(self._declared.correctable_status, CorrectableError.ADVISORY_NON_FATAL)
        if self._load(self._declared.correctable_mask) & CorrectableError.ADVISORY_NON_FATAL:
            return None
        if self._load(self._declared.uncorrectable_mask) & error:
            self._set(self._declared.uncorrectable_status, error)
        else:
            self._log(error, header)
        if unsupported and not self._core.config.error_messages & _UNSUPPORTED_REQUEST:
            return None
        return self._correctable_message(CorrectableError.ADVISORY_NON_FATAL)

    def _correctable_message(self, error: CorrectableError) -> ErrorMessage | None:
        if self._load(self._declared.correctable_mask) & error:
            return None
        return ErrorMessage.CORRECTABLE if self._core.config.error_messages & ErrorMessage.CORRECTABLE else None

    def _log(self, error: UncorrectableError, header: bytes) -> None:
        """Set the status. First Error Pointer and header log keep the first error until it is cleared (§6.2.4)."""
        declared = self._declared
        control = self._load(declared.control)
        status = self._load(declared.uncorrectable_status)
        if not status >> (control & _POINTER) & 1:
            declared.control.store(self._content, control & ~_POINTER | int(error).bit_length() - 1)
            for number, word in enumerate(declared.header_log):
                word.store(self._content, int.from_bytes(header[4 * number : 4 * number + 4], "big"))
        self._set(declared.uncorrectable_status, error)

    def _detected(self, bits: int) -> None:
        """Set what Device Status says of errors (§7.5.3.5)."""
        self._core.config.errors_detected |= bits

    def _load(self, register: Register[int]) -> int:
        return register.load(self._content)

    def _set(self, register: Register[int], bits: int) -> None:
        register.store(self._content, register.load(self._content) | bits)
