"""Where configuration, plugins and sockets are. The search works like systemd's own."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bellwire.trust import user
from bellwired.errors import CommandError

SYSTEM_RUNTIME = Path("/run/bellwire")
SYSTEM = (Path("/etc/bellwire"), SYSTEM_RUNTIME, Path("/usr/local/lib/bellwire"), Path("/usr/lib/bellwire"))
FOREGROUND = ".control"
log = logging.getLogger("bellwired")
Result = TypeVar("Result")


def add_places(parser: argparse.ArgumentParser) -> None:
    """The flags that name an instance, which the daemon and the commands share."""
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="read configuration and plugins only from DIR")
    parser.add_argument("--runtime-dir", type=Path, metavar="DIR", help="keep the sockets in DIR")
    for word, about in (("user", "your own instance"), ("system", "the system's instance")):
        parser.add_argument(f"--{word}", dest="whose", action="store_const", const=word, help=about)


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one instance: ``config``, the overriding one first; ``plugins``; ``runtime`` with the sockets."""

    config: tuple[Path, ...]
    plugins: tuple[Path, ...]
    runtime: Path
    whose: str = ""
    """``user``, ``system``, or nothing for a private instance, which has its own folders."""

    @classmethod
    def of(
        cls,
        config_dir: Path | None = None,
        runtime_dir: Path | None = None,
        environment: Mapping[str, str] = os.environ,
        uid: int | None = None,
        whose: str = "",
    ) -> Places:
        """The system's folders (``whose`` is "system"), or the user's own (XDG; "user").

        Root and a system service get the system's by default, and others their own. A user's instance has nothing in
        common with the system's except its plugins, which come last. ``config_dir`` and ``runtime_dir`` replace all
        folders.

        A /run/bellwire that does not belong to root has sockets alone: the daemon's user could put code there for root.
        Raises a CommandError if ``config_dir`` does not exist: a misspelt one would give a daemon without devices.
        """
        system = tuple(folder for folder in SYSTEM if folder != SYSTEM_RUNTIME or not _given_away())
        uid = os.geteuid() if uid is None else uid
        whose = whose or ("system" if uid == 0 or "RUNTIME_DIRECTORY" in environment else "user")
        if whose == "user":
            config = _user(environment)
            plugins = tuple(folder / "plugins" for folder in (*config, *system))
            own = _absolute(environment, "XDG_RUNTIME_DIR")
            runtime = own / "bellwire" if own else Path(f"/tmp/bellwire-{uid}")  # a parent could be another user's
        else:
            config = system
            plugins = tuple(folder / "plugins" for folder in config)
            runtime = Path(environment.get("RUNTIME_DIRECTORY", str(SYSTEM_RUNTIME)).partition(":")[0])
        if config_dir is not None:
            if not config_dir.is_dir():
                raise CommandError(f"{config_dir}: no such folder", "--config-dir names the one with devices.d in it")
            config = (config_dir.absolute(),)
            plugins = (config[0] / "plugins",)
        if config_dir is not None or runtime_dir is not None:
            whose = ""
        return cls(config, plugins, (runtime if runtime_dir is None else runtime_dir).absolute(), whose)

    @property
    def daemon(self) -> str:
        """The daemon of this instance, in words."""
        named = {"user": "your own daemon", "system": "the system's daemon"}
        return named.get(self.whose, "the daemon")

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.runtime / "control"

    def control_of(self, name: str) -> Path:
        """The control socket of a device that ``bellwire run`` serves in the foreground."""
        return self.runtime / f"{name}{FOREGROUND}"

    def foreground(self) -> Iterator[str]:
        """The names of devices that run in the foreground, or did so until they were killed."""
        for path in sorted(self.runtime.glob(f"*{FOREGROUND}")):
            yield path.name.removesuffix(FOREGROUND)

    def socket(self, name: str) -> Path:
        """A device's socket, unless its file names another."""
        return self.runtime / f"{name}.sock"

    def file(self, name: str) -> Path | None:
        """The file ``name`` that is in effect. None if there is none, or if it is masked."""
        for folder in self.config:
            path = folder / name
            if _looked(path, Path.lstat) is not None:
                return None if masked(path) else path
        return None

    def files(self, folder: str, suffix: str) -> Iterator[Path]:
        """The files in effect in the subfolder ``folder`` of the configuration, in order of their names."""
        found: dict[str, Path] = {}
        for place in self.config:
            for name in _looked(place / folder, os.listdir) or ():
                if name.endswith(suffix) and not name.startswith("."):  # not an editor's own
                    found.setdefault(name, place / folder / name)
        for _, path in sorted(found.items()):
            if not masked(path):
                yield path


def warn_of_what_is_not_read() -> None:
    """Log a warning if /run/bellwire has configuration or plugins and belongs to another user than root."""
    status = _given_away()
    if status is None:
        return
    for name in ("bellwired.toml", "devices.d", "plugins"):
        if os.path.lexists(SYSTEM_RUNTIME / name):
            why = f"belongs to {user(status.st_uid)}, so nothing is read from its {name}"
            log.warning("%s: %s; use %s", SYSTEM_RUNTIME, why, SYSTEM[0] / name)


def _given_away() -> os.stat_result | None:
    """The state of /run/bellwire, if it belongs to another user than root."""
    try:
        status = SYSTEM_RUNTIME.stat()
    except OSError:
        return None
    return status if status.st_uid not in (0, os.stat("/").st_uid) else None


def masked(path: Path) -> bool:
    """Whether a file masks those of its name in later folders: it is empty, or a link to /dev/null."""
    try:
        return os.path.realpath(path) == os.devnull or path.stat().st_size == 0
    except OSError:
        return False


def _looked(path: Path, look: Callable[[Path], Result]) -> Result | None:
    """The result of ``look``. None if nothing is at ``path``. A CommandError if the process may not find out."""
    try:
        return look(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", "the daemon's user must be able to read it") from None


def _user(environment: Mapping[str, str]) -> tuple[Path, ...]:
    home = _absolute(environment, "HOME") or Path("/")
    config = _absolute(environment, "XDG_CONFIG_HOME") or home / ".config"
    data = _absolute(environment, "XDG_DATA_HOME") or home / ".local/share"
    runtime = _absolute(environment, "XDG_RUNTIME_DIR")
    between = (runtime / "bellwire",) if runtime else ()
    return (config / "bellwire", *between, data / "bellwire")


def _absolute(environment: Mapping[str, str], name: str) -> Path | None:
    """A folder that the environment names; a relative one does not count (XDG Base Directory Specification)."""
    path = Path(environment.get(name, ""))
    return path if path.is_absolute() else None
