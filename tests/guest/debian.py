"""What only tests fetch from Debian's archive: source packages."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from pathlib import Path

from bellwired.guest.archive import Apt, ArchiveError, run


def download_source(apt: Apt, package: str, folder: Path) -> list[Path]:
    """A source package's files in ``folder``, the description last: the newest that the mirror still has whole."""
    apt.update()
    records = run("apt-cache", *apt.options, "showsrc", package).splitlines()
    versions = {line.split()[1] for line in records if line.startswith("Version: ")}
    for version in sorted(versions, key=functools.cmp_to_key(_compare), reverse=True):
        with contextlib.suppress(ArchiveError):
            run("apt-get", "-qq", *apt.options, "source", "--download-only", f"{package}={version}", folder=folder)
            (description,) = folder.glob(f"{package}_*.dsc")
            return [*sorted(folder.glob(f"{package}_*.tar.*")), description]
        for file in folder.glob(f"{package}_*"):
            file.unlink()
    raise ArchiveError(
        f"none of the versions {', '.join(sorted(versions)) or '(none)'} of {package} can be fetched whole"
    )


def _compare(left: str, right: str) -> int:
    """Two versions of a package, as dpkg orders them: below 0 if ``left`` is the older."""
    older = subprocess.run(("dpkg", "--compare-versions", left, "lt", right), check=False).returncode == 0
    return -1 if older else left != right
