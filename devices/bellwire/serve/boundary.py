"""The boundary to device code: an error there is logged, and the worker goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bellwire.errors import GuestError
from bellwire.model.core import Core
from bellwire.model.limited import shape
from bellwire.serve.blame import in_words
from bellwire.serve.observer import Observer


class Boundary:
    """Calls the code of one device, and logs what it raises."""

    def __init__(self, core: Core, observer: Observer) -> None:
        self._core = core
        self._observer = observer

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call device code. If it raises, the error is logged, and the result is None."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 no error of device code may end the worker
            self.failed(getattr(function, "__name__", "device code"), error)
            return None

    def failed(self, what: str, error: BaseException) -> None:
        """Count an ``error`` that device code raised in ``what``, and log it at a limited rate."""
        log = self._core.log
        if isinstance(error, GuestError):
            self._core.tally.guest_errors += 1
            log.warning(("guest", shape(error)), "%s", in_words(error, what))
        else:
            self._core.tally.failures += 1
            log.failure(_place(error), error, "%s", in_words(error, what))
        self._observer.failed(error)


def _place(error: BaseException) -> tuple[object, ...]:
    """The place where it was raised. The log has the traceback once for each place."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code, trace.tb_lineno)
