"""Packages of Debian's archive, fetched and unpacked without root: nothing is installed, no script of them is run.

apt does the work, with state of its own in which no package is installed, so that it names everything that is needed.
Proxies and certificates are those of the machine's apt configuration, and so is the mirror, unless BELLWIRE_DEBIAN
names another. Whatever the configuration says, apt takes only what the keys of Debian's archive have signed: gpgv (or
sqv) checks the signature of InRelease, which has the digests of the lists, which have the digests of the packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bellwired.errors import CommandError

KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("gpg", "pgp"))
VERIFIERS = ("gpgv", "sqv")
MIRROR = "BELLWIRE_DEBIAN"
"""The environment variable that names a mirror, for a machine whose apt knows none."""
PATIENCE = 3600.0  # seconds, for a slow mirror; apt gives up on a silent one much earlier
SILENCE = 30  # seconds without a byte from the mirror
DESCRIPTORS = "APT::Status-Fd"
_MIRROR = re.compile(r"(https?|file|copy|mirror\+https?)://?[^\s\[\]\"';#]+")
_STATUS = re.compile(rb"dlstatus:\d+:([0-9.]+):")

Told = Callable[[float], None]


class ArchiveError(CommandError):
    """Packages cannot be had from Debian's archive. The message says what was wanted, from where, and what failed."""


class Apt:
    """An apt whose state and downloads are in ``folder``. What an interrupted run has fetched there is used again.

    ``pins`` are source packages that come from another suite than the first. ``security`` is a suite of the security
    archive; it is used if the machine's apt knows that archive, and BELLWIRE_DEBIAN names no other place. With
    ``sources`` it knows source packages alone. Raises an ArchiveError if the machine lacks apt, a verifier of
    signatures or Debian's keys.
    """

    def __init__(
        self,
        folder: Path,
        suites: Sequence[str],
        pins: Mapping[str, str] | None = None,
        security: str = "",
        *,
        sources: bool = False,
    ) -> None:
        self.archives = folder / "archives"
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self.mirror = _copied(find_mirror())
        keys = find_keyring()
        kind = "deb-src" if sources else "deb"
        lines = [f"{kind} [signed-by={keys}] {self.mirror} {suite} main\n" for suite in suites]
        if security and MIRROR not in os.environ and (mirror := known_mirror("debian-security")):
            lines.append(f"deb [signed-by={keys}] {_copied(mirror)} {security} main\n")
        (folder / "sources.list").write_text("".join(lines))
        pin = "Package: src:{}\nPin: release n={}\nPin-Priority: 990\n"
        (folder / "preferences").write_text("\n".join(pin.format(*each) for each in (pins or {}).items()))
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
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": SILENCE,
            "Acquire::https::Timeout": SILENCE,
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    @property
    def where(self) -> str:
        """The mirror's host, or its folder."""
        found = urlsplit(self.mirror)
        return found.hostname or found.path

    def update(self) -> None:
        """Learn what there is, and check that Debian has signed it."""
        run("apt-get", "-qq", *self.options, "update")

    def download(self, packages: Sequence[str], told: Told | None = None) -> list[Path]:
        """The packages and all that they need."""
        self.update()
        self._tidy()
        run("apt-get", "-qqy", *self.options, "install", "--download-only", *packages, told=told)
        return sorted(self.archives.glob("*.deb"))

    def download_named(self, packages: Sequence[str], told: Told | None = None) -> list[Path]:
        """These packages without what they need, for the files that are in them."""
        self.update()
        self._tidy()
        run("apt-get", "-qq", *self.options, "download", *packages, folder=self.archives, told=told)
        return sorted(self.archives.glob("*.deb"))

    def _tidy(self) -> None:
        """Remove what an interrupted run has fetched and the archive has replaced since."""
        run("apt-get", "-qq", *self.options, "autoclean")


def find_keyring() -> Path:
    """The keys of Debian's archive. An ArchiveError if they, or the program that checks signatures, are missing."""
    if not any(map(shutil.which, VERIFIERS)):
        hint = "install gpgv, or sqv"
        raise ArchiveError(f"no {' or '.join(VERIFIERS)}: Debian's signatures cannot be checked", hint)
    for keyring in KEYRINGS:
        if keyring.exists():
            return keyring
    hint = "install debian-archive-keyring, or what your system calls it"
    raise ArchiveError(f"no {KEYRINGS[0]}: there are no keys to check Debian's signatures with", hint)


def find_mirror() -> str:
    """The address of a mirror of Debian's archive. An ArchiveError if the machine has no apt, or its apt knows none."""
    for command, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(command) is None:
            raise ArchiveError(f"no {command}: it fetches packages of Debian", f"install {package}")
    if named := os.environ.get(MIRROR):
        if _MIRROR.fullmatch(named) is None:
            raise ArchiveError(f"{MIRROR}: expected the address of a mirror of Debian, got {named!r}")
        return named
    if found := known_mirror("debian"):
        return found
    hint = f"name a mirror of Debian: {MIRROR}=http://HOST/debian"
    raise ArchiveError("this machine's apt has no mirror of Debian among its sources", hint)


def known_mirror(archive: str) -> str:
    """The mirror of an archive of Debian in the sources of the machine's apt; empty if there is none."""
    # Without release information, apt answers before its first update too.
    words = ("apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages")
    return next((address for address in run(*words).split() if address.rstrip("/").endswith(f"/{archive}")), "")


def _copied(mirror: str) -> str:
    """apt leaves the packages of a mirror in a folder where they are, unless it is told to copy them."""
    return re.sub(r"^file:", "copy:", mirror)


def unpack(packages: Sequence[Path], root: Path, told: Told | None = None) -> None:
    """Lay out their files below ``root``; their scripts are not run."""
    root.mkdir(parents=True)
    for done, package in enumerate(packages, 1):
        run("dpkg-deb", "--extract", os.fspath(package), os.fspath(root))
        if told:
            told(done / len(packages))


def run(*words: str, folder: Path | None = None, told: Told | None = None) -> str:
    """The output of a command that runs in ``folder``. ``told`` gets the share that an apt-get has downloaded.

    Raises an ArchiveError with the last lines of its complaint if it fails.
    """
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        if told is None:
            done = subprocess.run(
                words, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
            )
        else:
            done = _watched(words, folder, env, told)
    except subprocess.TimeoutExpired:
        raise ArchiveError(f"{words[0]} was not done after {PATIENCE:.0f} s") from None
    output, errors = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode:
        raise ArchiveError(f"{words[0]}: {_complaint(errors or output) or f'status {done.returncode}'}")
    return output


def _complaint(text: str) -> str:
    """The last lines, or those with apt's errors among them, except the one that says that there are errors."""
    lines = text.strip().splitlines()
    errors = [line[3:] for line in lines if line.startswith("E: ") and "Some index files failed" not in line]
    return "; ".join((errors or lines)[-3:])


def _watched(
    words: Sequence[str], folder: Path | None, env: Mapping[str, str], told: Told
) -> subprocess.CompletedProcess[bytes]:
    """As ``subprocess.run``, and read apt's status lines (apt's README.progress-reporting) meanwhile."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as status, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                (words[0], "-o", f"{DESCRIPTORS}={theirs}", *words[1:]),
                cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=[theirs],
            )  # fmt: skip
        finally:
            os.close(theirs)
        with process:
            try:
                for line in status:
                    if found := _STATUS.match(line):
                        told(min(float(found[1]) / 100, 1.0))
                process.wait(PATIENCE)
            except BaseException:
                process.kill()
                raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, output.read(), errors.read())
