"""The boundary to device code: what it raises ends nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bellwire.errors import GuestError
from bellwire.model.core import Core
from bellwire.model.limited import shape
from bellwire.serve.blame import in_words
from bellwire.serve.observer import Observer


class Boundary:
    """Calls into the code of one device, and says in the log what came of it."""

    def __init__(self, core: Core, observer: Observer) -> None:
        self._core = core
        self._observer = observer

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into device code; what it raises is logged, and None comes back."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 the boundary to device code: nothing of it may end us
            self.failed(getattr(function, "__name__", "device code"), error)
            return None

    def failed(self, what: str, error: BaseException) -> None:
        """Device code raised ``error`` in ``what``: counted, and logged at a limited rate."""
        log = self._core.log
        if isinstance(error, GuestError):
            self._core.tally.guest_errors += 1
            log.warning(("guest", shape(error)), "%s", in_words(error, what))
        else:
            self._core.tally.failures += 1
            log.failure(_place(error), error, "%s", in_words(error, what))
        self._observer.failed(error)


def _place(error: BaseException) -> tuple[object, ...]:
    """Where it was raised: each place has its traceback logged once."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code, trace.tb_lineno)
