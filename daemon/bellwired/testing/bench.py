"""The machines of a run of pytest: each is started when a test asks for it, and ends with its scope."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

from bellwired.errors import CommandError
from bellwired.testing.running import Running
from bellwired.testing.tools import NotHere, Tools
from bellwired.testing.vm import Vm
from bellwired.testing.wanted import Wanted, find_module


@dataclass
class Kept:
    """A machine of a scope: the one that runs, or why it cannot."""

    wanted: Wanted
    modules: list[Path]
    path: list[Path]
    """Folders in which the guest's commands are found first: those of the modules, and that of the test."""
    running: Running | None = None
    failure: str = ""


_KEPT = pytest.StashKey[list[Kept]]()


class Bench:
    """Gives tests their machines. ``required`` fails a test whose machine cannot be had, in place of skipping it."""

    def __init__(self, config: pytest.Config, *, required: bool) -> None:
        self._config = config
        self._required = required
        self._tools = Tools(config)

    def vm(self, running: Running) -> Vm:
        """What a test gets of a machine."""
        return Vm(running, running.timeout)

    def take(self, item: pytest.Item, wanted: Wanted) -> Running:
        """The machine that a test wants: one of its scope that runs, or a new one."""
        __tracebackhide__ = True
        if self._config.getoption("--bellwire-fresh"):
            wanted = replace(wanted, scope="function")
        if not self._config.getoption("--bellwire-trace"):
            wanted = replace(wanted, trace=False)
        kept = self._kept(item, wanted)
        if kept.failure:
            pytest.fail(f"the machine could not be started for a test before this one: {kept.failure}", pytrace=False)
        if kept.running is not None and (kept.running.spoiled or kept.running.ended):
            kept.running.close()
            kept.running = None
        if kept.running is None:
            kept.running = self._start(kept)
        return kept.running

    def _start(self, kept: Kept) -> Running:
        __tracebackhide__ = True
        try:
            for module in kept.modules:
                self._tools.build(module)
            plan = self._tools.plan(kept.wanted, kept.modules, kept.path)
            timeout = kept.wanted.timeout
            if timeout is None:
                timeout = self._config.getoption("--bellwire-timeout")
            return Running(kept.wanted, kept.modules, kept.path, plan, timeout)
        except NotHere as error:
            self._unavailable(str(error))
        except CommandError as error:
            kept.failure = str(error)
            raise

    def _unavailable(self, reason: str) -> NoReturn:
        __tracebackhide__ = True
        if self._required:
            pytest.fail(f"no machine: {reason}", pytrace=False)
        pytest.skip(f"no machine: {reason}")

    def _kept(self, item: pytest.Item, wanted: Wanted) -> Kept:
        """The place for the machine in the test's scope. The machine ends with the scope."""
        places = list(dict.fromkeys((item.path.parent, self._config.rootpath, self._config.invocation_params.dir)))
        modules = [find_module(name, places) if name.endswith(".ko") else Path(name) for name in wanted.modules]
        folders = [module.parent for module in modules if module.is_absolute()]
        wants = Kept(wanted, modules, list(dict.fromkeys([*folders, item.path.parent])))
        node = _node(item, wanted)
        machines = node.stash.setdefault(_KEPT, [])
        for kept in machines:
            if (kept.wanted, kept.modules, kept.path) == (wanted, modules, wants.path):
                return kept
        kept = wants
        machines.append(kept)

        def end() -> None:
            machines.remove(kept)
            if kept.running is not None:
                kept.running.close()

        node.addfinalizer(end)
        return kept


def _node(item: pytest.Item, wanted: Wanted) -> pytest.Item | pytest.Collector:
    if wanted.scope == "session":
        return item.session
    module = item.getparent(pytest.Module) if wanted.scope == "module" else None
    return module or item
