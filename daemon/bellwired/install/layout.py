"""The folders of an installation, for all users or for one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bellwired.install import record

MULTIARCH = "x86_64-linux-gnu" if Path("/usr/lib/x86_64-linux-gnu").is_dir() else ""
"""Where Debian's libraries, and Wireshark's plugins with them, lie below a folder ``lib``."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Absolute folders, as they are named at run time. ``system`` is None in a user's own installation."""

    bin: Path
    share: Path
    library: Path
    configuration: Path
    user_units: Path
    wireshark: Path
    system: Path | None

    @classmethod
    def for_all(cls, prefix: Path) -> Layout:
        """Folders below ``prefix``. systemd and the daemon search /usr and /usr/local only."""
        library = prefix / "lib"
        return cls(
            bin=prefix / "bin",
            share=prefix / "share",
            library=library / "bellwire",
            configuration=Path("/etc/bellwire"),
            user_units=library / "systemd/user",
            wireshark=library / MULTIARCH / "wireshark/plugins",
            system=library,
        )

    @classmethod
    def for_one(cls, environment: Mapping[str, str] = os.environ) -> Layout:
        """Folders in the user's home (XDG Base Directory Specification)."""
        home = Path(environment.get("HOME") or Path.home())
        share = Path(environment.get("XDG_DATA_HOME") or home / ".local/share")
        return cls(
            bin=home / ".local/bin",
            share=share,
            library=share / "bellwire",
            configuration=Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "bellwire",
            user_units=share / "systemd/user",
            wireshark=home / ".local/lib/wireshark/plugins",
            system=None,
        )

    @property
    def startable(self) -> bool:
        """Whether systemd takes the commands' paths: it refuses quotes, backslashes and control characters."""
        return re.search(r"""[\x00-\x1f\x7f"'\\]""", str(self.bin)) is None

    @property
    def record(self) -> Path:
        """The file that lists everything that was written."""
        return self.library / record.NAME
