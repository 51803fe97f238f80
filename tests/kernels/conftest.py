from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.guest import archive
from kernels.signed_archive import SignedArchive

NEEDED = ("apt-get", "dpkg-deb", "gpg", "gpgconf")


@pytest.fixture(scope="module")
def prepared() -> Iterator[SignedArchive]:
    """An archive; its folder has a short name, since gpg's agent listens there."""
    if missing := [command for command in NEEDED if shutil.which(command) is None]:
        pytest.skip(f"no archive can be made: there is no {', '.join(missing)}")
    with (
        tempfile.TemporaryDirectory(prefix="archive-") as folder,
        contextlib.closing(SignedArchive(Path(folder))) as made,
    ):
        yield made


@pytest.fixture
def signed(prepared: SignedArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SignedArchive:
    """An archive that Bellwire takes for Debian's, and an empty cache."""
    shutil.rmtree(prepared.mirror, ignore_errors=True)
    monkeypatch.setenv(archive.MIRROR, prepared.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(archive, "KEYRINGS", (prepared.keyring,))
    return prepared
