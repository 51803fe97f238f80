"""tshark, fetched from Debian into the cache without root, and what it makes of a capture."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bellwired.guest.progress import Progress, silent
from bellwired.guest.toolbox import LIBRARIES, LOADER
from fetched import fetched

SCRIPT = Path(__file__).parents[2] / "daemon/bellwired/install/bellwire.lua"
PATIENCE = 120  # seconds


class Tshark:
    """The tshark in ``root``, which has the dissector and no other setting of a user."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str | Path, home: Path, script: Path | None = SCRIPT) -> str:
        """What it prints. It must say nothing else: a mistake in the script is a line of its errors."""
        libraries = ":".join(os.fspath(self.root / folder) for folder in (LIBRARIES, f"{LIBRARIES}/pulseaudio"))
        loaded = [str(self.root / LOADER), "--library-path", libraries, str(self.root / "usr/bin/tshark")]
        if os.geteuid() == 0:  # for root, Wireshark runs no scripts
            loaded = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *loaded]
        told = ["-X", f"lua_script:{script}"] if script else []
        done = subprocess.run(
            [*loaded, *told, *map(str, words)],
            env={"HOME": str(home), "WIRESHARK_DATA_DIR": str(self.root / "usr/share/wireshark"), "LC_ALL": "C.UTF-8"},
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def fields(self, capture: Path, names: Sequence[str], home: Path, show: str = "") -> list[dict[str, str]]:
        """These fields of each packet that the display filter ``show`` picks; a field that comes twice has a comma."""
        words = ["-r", str(capture), "-T", "fields", "-E", "separator=|", *(["-Y", show] if show else [])]
        lines = self.run(*words, *(word for name in names for word in ("-e", name)), home=home).splitlines()
        return [dict(zip(names, line.split("|"), strict=True)) for line in lines]

    def packets(self, capture: Path, home: Path, show: str = "") -> list[Any]:
        """The packets that ``show`` picks, as tshark's JSON has them."""
        words = ["-2", "-r", str(capture), "-T", "json", "--no-duplicate-keys", *(["-Y", show] if show else [])]
        return list(json.loads(self.run(*words, home=home)))


def fetch_tshark(progress: Progress = silent) -> Tshark:
    """Debian's tshark. An ArchiveError says what stands in the way."""
    return Tshark(fetched(("tshark",), progress))
