"""Errors of device code in one line: the hook, its file and line, the error, and what the guest did."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import bellwire
import vfio_user
from bellwire.errors import BellwireError, GuestError
from bellwire.filters import Filter, FilterError, Stack

_HOME = Path(bellwire.__file__).parent
_OURS = (
    *(str(_HOME / room) for room in ("declare", "faults", "filters", "model", "serve", "testing", "device.py")),
    str(Path(vfio_user.__file__).parent),
)
"""The folders of the SDK's own frames. Bundled devices and the rooms they build on count as device code."""

log = logging.getLogger("bellwire.worker")


class DeviceFailed(BellwireError):
    """Device code has raised in ``__init__``, ``setup`` or ``reset``, so the device cannot run."""


def in_words(error: BaseException, what: str) -> str:
    """Describe ``error`` in one line. ``what`` says what was being done, for an error without a note of its own."""
    doing = next(iter(getattr(error, "__notes__", ())), what)
    text = f"{error}{_meant(error)}"
    if isinstance(error, GuestError):
        return f"guest error: {text}" if text.startswith(doing) else f"guest error in {doing}: {text}"
    kind = type(error).__name__
    found = _device_code(error.__traceback__)
    if found is None:
        return f"device code failed in {doing}: {kind}: {text}"
    hook, place = found
    suffix = "" if doing.rpartition(".")[2] == hook.rpartition(".")[2] else f" (in {doing})"
    return f"{hook} failed at {place}: {kind}: {text}{suffix}"


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn an error of device code into a DeviceFailed of one line. The debug log has the traceback."""
    try:
        yield
    except BellwireError:
        raise
    except (Exception, SystemExit) as error:
        line = in_words(error, what)
        log.debug("%s", line, exc_info=error)
        raise DeviceFailed(line) from error


def put_in(each: Filter, filters: Stack, place: int | None = None) -> None:
    """Put a filter in: see :meth:`Stack.add`. An error of its code becomes a FilterError of one line.

    The debug log has the traceback.
    """
    try:
        filters.add(each, place)
    except BellwireError:
        raise
    except (Exception, SystemExit) as error:
        hook, found = _device_code(error.__traceback__) or ("start", "")
        doing, where = hook.rpartition(".")[2], f"{found}: " if found else ""
        line = f"filter {each.name} failed in {doing}: {where}{type(error).__name__}: {error}{_meant(error)}"
        log.debug("%s", line, exc_info=error)
        raise FilterError(line) from error


def _meant(error: BaseException) -> str:
    """A hint for an AttributeError: an existing name that is close to the missing one."""
    if not isinstance(error, AttributeError) or not isinstance(error.name, str):
        return ""
    near = difflib.get_close_matches(error.name, dir(error.obj), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _device_code(trace: TracebackType | None) -> tuple[str, str] | None:
    """The first function outside the SDK in a traceback, and its deepest line outside the SDK."""
    hook = folder = place = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        file = os.path.abspath(code.co_filename)
        if not hook and not file.startswith(_OURS):
            hook = code.co_qualname.rpartition("<locals>.")[2]
            folder = os.path.dirname(file)
        if hook and file.startswith(folder) and "site-packages" not in file[len(folder) :]:
            place = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return (hook, place) if hook else None
