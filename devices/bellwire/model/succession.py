"""How a device goes on with a state from elsewhere: a snapshot, a migration, or the files of another process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bellwire.errors import StateError
from bellwire.model.source import StateFiles

if TYPE_CHECKING:
    from bellwire.model.core import Core


def restore(core: Core, snapshot: bytes) -> None:
    """See :meth:`Core.restore`."""
    core.state.restore(snapshot, client=core.connected)
    core.follow_state()
    try:
        core.device.check_state()
    except StateError:
        core.reset()
        raise
    _go_on(core)


def load(core: Core, snapshot: bytes) -> None:
    """Put the state in ``snapshot`` in place, in a device that stands still: it goes on with it once it runs.

    A StateError says why it is refused, and the device is as before.
    """
    before = core.state.snapshot()
    core.state.restore(snapshot, client=core.connected)
    core.config.refresh()
    core.follow()
    try:
        core.device.check_state()
    except BaseException:
        core.state.restore(before)
        core.config.refresh()
        core.follow()
        raise
    core.forget()
    for pool in core.pools:
        pool.settle()
    core.waiting = partial(_go_on, core)


def take_over(
    core: Core, files: StateFiles, *, client: bool, died: bool, moved: Callable[[], None], loaded: bool, fatal: bool
) -> None:
    """See :meth:`Core.take_over`. ``loaded``: the state was loaded, and has not run yet."""
    torn = core.state.take_over(files, client=client, died=died)
    core.follow_state()
    try:
        if fatal:
            raise StateError("a process that went on with it has ended")
        core.device.check_state()
    except (Exception, SystemExit) as error:
        if not died:
            raise
        core.state.inherit(files)
        moved()
        _give_up(core, error)
        return
    core.state.inherit(files)
    how = partial(_recover, core, torn) if died and not loaded else partial(_go_on, core)
    if died:
        moved()
    if core.still:
        core.waiting = how
    else:
        how()
    if not died:  # until here the state of before is there for a successor of this process
        moved()


def _go_on(core: Core) -> None:
    core.signals.relevel()
    core.signals.resend()
    core.call(core.device.restored)


def _recover(core: Core, torn: bool) -> None:
    core.signals.relevel()
    core.signals.resend()
    try:
        core.call(core.device.recovered, torn)
    except (Exception, SystemExit) as error:  # noqa: BLE001 a successor of this process would get no further
        _give_up(core, error)


def _give_up(core: Core, error: Exception | SystemExit) -> None:
    """Device code cannot go on with the state that a dead process has left."""
    if isinstance(error, StateError):
        fail(core, str(error))
    else:
        core.log.failure("crash", error, "%s cannot go on after a crash", type(core.device).__name__)
        fail(core, f"{type(error).__name__}: {error}")


def fail(core: Core, why: str) -> None:
    """See :meth:`Core.fail`."""
    core.log.error("reset, since its state is lost: %s", why)
    state = core.state
    config, table, used = bytes(state.config), bytes(state.msix), state.table_used
    core.reset()
    state.config[:], state.msix[:], state.table_used = config, table, used
    core.follow_state()
    core.signals.drive(False)
    core.call(core.device.failed)
