"""What machines are made of: QEMU, a kernel, and what builds modules for it. Found or fetched once in a run."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.build import build_modules
from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.kernel import Kernel
from bellwired.guest.kernels import DEBIAN, find_kernel
from bellwired.guest.plan import HOST, KERNELS_OWN, Share
from bellwired.guest.progress import Progress, shown, silent
from bellwired.guest.qemus import Qemu, find_qemu
from bellwired.guest.toolbox import Toolbox
from bellwired.testing.wanted import Wanted

NEEDED = ("vfio-user-pci", "virtserialport", "vhost-user-fs-pci")
"""Devices that QEMU must have."""
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class NotHere(Exception):
    """A machine cannot be had here. The message says what is missing."""


class Tools:
    """The tools of a run of pytest. What cannot be had raises a NotHere."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: tuple[Toolbox, Qemu, Kernel] | None = None
        self._missing = ""

    def plan(self, wanted: Wanted, modules: Sequence[Path], folders: Sequence[Path]) -> dict[str, Any]:
        """The plan of a machine, without its devices: with the kernel's own modules that the test's ones need.

        The guest has ``folders``, and its commands start in the last of them.
        """
        toolbox, qemu, kernel = self._find()
        ours = {module.stem.replace("-", "_") for module in modules if module.suffix == ".ko"}
        needed = dict.fromkeys(name for module in modules for name in _depends(module) if name not in ours)
        append = f"{self._config.getoption('--bellwire-append')} {wanted.guest.get('append', '')}".strip()
        minimal = wanted.guest.get("root", HOST) != HOST
        hidden = [each for each in folders if minimal or any(each.is_relative_to(own) for own in KERNELS_OWN)]
        return {
            "kernel": kernel,
            "qemu": qemu,
            "root": HOST,
            "busybox": toolbox.busybox,
            "folder": str(folders[-1]),
            **wanted.guest,
            "append": append,
            "modules": [*needed, *wanted.guest.get("modules", ())],
            "shares": [*(Share(each, str(each)) for each in hidden), *wanted.guest.get("shares", ())],
        }

    def build(self, module: Path) -> None:
        """Build a module, if its folder has a Makefile."""
        if (module.parent / "Makefile").exists():
            _, _, kernel = self._find()
            with self._progress(quick=True) as progress, _fetching():
                build_modules(module.parent, kernel, progress)

    def _find(self) -> tuple[Toolbox, Qemu, Kernel]:
        if self._missing:
            raise NotHere(self._missing)
        if self._found is None:
            word: str = self._config.getoption("--bellwire-kernel") or DEBIAN
            try:
                with self._progress() as progress, _fetching():
                    toolbox = fetch_guest_tools(progress)
                    self._found = (
                        toolbox,
                        find_qemu(toolbox, needed=NEEDED),
                        find_kernel(word, progress, lambda _: toolbox),
                    )
            except NotHere as error:
                self._missing = str(error)
                raise
        return self._found

    @contextlib.contextmanager
    def _progress(self, *, quick: bool = False) -> Iterator[Progress]:
        """Progress on the terminal, past what pytest captures.

        What is ``quick`` is shown where it can be wiped out again, or with ``-v``: a line would stay between the dots.
        """
        if quick and not sys.stderr.isatty() and self._config.getoption("verbose") < 1:
            yield silent
            return
        capture: Any = self._config.pluginmanager.getplugin("capturemanager")
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.flush()
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext(), shown() as progress:
            yield progress


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    """What cannot be fetched is not here."""
    try:
        yield
    except ArchiveError as error:
        raise NotHere(error.in_words) from None


def _depends(module: Path) -> list[str]:
    """The modules that a module needs, as modpost has written it."""
    if module.suffix != ".ko":
        return [module.name]
    found = _DEPENDS.search(module.read_bytes())
    return [name for name in found[1].decode(errors="replace").split(",") if name] if found else []
