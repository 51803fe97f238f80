"""Debian packages of another release, unpacked beside the machine's own: no root, no chroot, nothing installed.

apt runs with state of its own that knows no installed package, so that it names everything that is needed; the mirror,
proxies and keys are the machine's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PATIENCE = 600.0  # seconds, for a slow mirror


class AptError(Exception):
    """apt or dpkg could not do it; the message says what and why."""


class Apt:
    """An apt whose state is in ``folder``.

    ``pins`` are sources of packages that come from another suite than the first. ``security`` is a suite of the
    security archive, which is used where the machine's apt knows that. With ``sources`` it knows source packages alone.
    """

    def __init__(
        self, folder: Path, suites: Sequence[str], pins: dict[str, str], security: str = "", *, sources: bool = False
    ) -> None:
        self._archives = folder / "archives"
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        mirror = find_mirror()
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        kind = "deb-src" if sources else "deb"
        lines = [f"{kind} {signed}{mirror} {suite} main\n" for suite in suites]
        if security:
            with contextlib.suppress(AptError):
                lines.append(f"deb {signed}{find_mirror('debian-security')} {security} main\n")
        (folder / "sources.list").write_text("".join(lines))
        pinned = (f"Package: src:{name}\nPin: release n={suite}\nPin-Priority: 990\n" for name, suite in pins.items())
        (folder / "preferences").write_text("\n".join(pinned))
        settings = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": folder / "preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Learn what there is."""
        run("apt-get", "-qq", *self.options, "update")

    def download(self, packages: Sequence[str]) -> list[Path]:
        """The packages, and all that they need."""
        self.update()
        run("apt-get", "-qqy", *self.options, "install", "--download-only", *packages)
        return sorted(self._archives.glob("*.deb"))

    def download_alone(self, package: str) -> Path:
        """One package without what it needs: for what lies in it, not to run it."""
        self.update()
        run("apt-get", "-qq", *self.options, "download", package, folder=self._archives)
        (found,) = self._archives.glob(f"{package}_*.deb")
        return found

    def download_named(self, packages: Sequence[str]) -> list[Path]:
        """These packages without what they need: for what lies in them."""
        self.update()
        run("apt-get", "-qq", *self.options, "download", *packages, folder=self._archives)
        return sorted(self._archives.glob("*.deb"))

    def download_source(self, package: str, folder: Path) -> list[Path]:
        """A source package's files in ``folder``, the description last: the newest that the mirror still has whole."""
        self.update()
        records = run("apt-cache", *self.options, "showsrc", package).splitlines()
        versions = {line.split()[1] for line in records if line.startswith("Version: ")}
        for version in sorted(versions, key=functools.cmp_to_key(_compare), reverse=True):
            with contextlib.suppress(AptError):
                run("apt-get", "-qq", *self.options, "source", "--download-only", f"{package}={version}", folder=folder)
                (description,) = folder.glob(f"{package}_*.dsc")
                return [*sorted(folder.glob(f"{package}_*.tar.*")), description]
            for file in folder.glob(f"{package}_*"):
                file.unlink()
        raise AptError(
            f"none of the versions {', '.join(sorted(versions)) or '(none)'} of {package} can be fetched whole"
        )


def _compare(left: str, right: str) -> int:
    """Two versions of a package, as dpkg orders them: below 0 if ``left`` is the older."""
    older = subprocess.run(("dpkg", "--compare-versions", left, "lt", right), check=False).returncode == 0
    return -1 if older else left != right


def find_mirror(archive: str = "debian") -> str:
    """A mirror of an archive of Debian's, as the machine's apt knows it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise AptError("this is no Debian: there is no apt-get or no dpkg-deb")
    # Without release information, apt answers before its first update too.
    found = run(
        "apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"
    ).split()
    for address in found:
        if address.rstrip("/").endswith(f"/{archive}"):
            return address
    raise AptError(f"apt's sources name no mirror of {archive} (only {', '.join(sorted(set(found))) or 'none'})")


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Lay out their files below ``root``; their scripts are not run."""
    root.mkdir(parents=True)
    for package in packages:
        run("dpkg-deb", "--extract", os.fspath(package), os.fspath(root))


def run(*words: str, folder: Path | None = None) -> str:
    """What a command prints, run in ``folder``; an AptError with what it complains about when it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AptError(f"{words[0]} was not done after {PATIENCE:.0f} s") from None
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise AptError(f"{words[0]}: {'; '.join(complaint[-3:]) or f'status {done.returncode}'}")
    return done.stdout
