"""A small archive of Debian packages in a folder, signed by a key of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from bellwired.guest.fetch import BACKPORTS, SUITE


class SignedArchive:
    """Each of its packages has one file, /usr/share/NAME, whose content is the version."""

    def __init__(self, folder: Path) -> None:
        self.mirror = folder / "debian"
        self.keyring = folder / "keys.gpg"
        self._folder = folder
        self._home = folder / "gnupg"
        self._home.mkdir(mode=0o700, parents=True)
        self._gpg("--quick-generate-key", "--passphrase=", "archive@example.org", "ed25519", "sign", "never")
        self.keyring.write_bytes(self._gpg("--export"))

    @property
    def address(self) -> str:
        """The mirror's address."""
        return f"file://{self.mirror}"

    def publish(self, packages: dict[str, str], suite: str = SUITE, *, signed: bool = True) -> None:
        """Put packages, by name and version, into a suite; the other suite is empty."""
        for name in (SUITE, BACKPORTS):
            self._publish(packages if name == suite else {}, name, signed)

    def package(self, name: str) -> Path:
        """Its file at the mirror."""
        (found,) = self.mirror.glob(f"pool/{name}_*.deb")
        return found

    def lists(self, suite: str = SUITE) -> Path:
        """The list of packages at the mirror."""
        return self.mirror / "dists" / suite / "main/binary-amd64/Packages"

    def _publish(self, packages: dict[str, str], suite: str, signed: bool) -> None:
        lists = self.lists(suite)
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("".join(self._made(name, version) for name, version in packages.items()))
        data = lists.read_bytes()
        release = lists.parents[2] / "Release"
        release.write_text(
            f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nDate: Sun, 01 Nov 2026 00:00:00 UTC\n"
            f"Architectures: amd64\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/Packages\n"
        )
        if signed:
            self._gpg("--clearsign", "--output", os.fspath(release.with_name("InRelease")), os.fspath(release))
            release.unlink()

    def _made(self, name: str, version: str) -> str:
        tree, pool = self._folder / "trees" / name, self.mirror / "pool"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "usr/share").mkdir(parents=True, exist_ok=True)
        pool.mkdir(exist_ok=True, parents=True)
        (tree / "usr/share" / name).write_text(version)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\nDescription: {name}\n"
        (tree / "DEBIAN/control").write_text(control)
        made = pool / f"{name}_{version}_amd64.deb"
        words = ["dpkg-deb", "--build", "-Znone", "--root-owner-group", os.fspath(tree), os.fspath(made)]
        subprocess.run(words, check=True, capture_output=True)
        data = made.read_bytes()
        return f"{control}Filename: pool/{made.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"

    def _gpg(self, *words: str) -> bytes:
        options = ("gpg", "--homedir", os.fspath(self._home), "--batch", "--yes", "--pinentry-mode=loopback")
        return subprocess.run([*options, *words], check=True, capture_output=True).stdout

    def close(self) -> None:
        """End the agent that gpg has started."""
        subprocess.run(["gpgconf", "--homedir", self._home, "--kill", "all"], check=True, capture_output=True)
