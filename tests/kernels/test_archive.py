"""Packages come from Debian's archive, and only what its keys have signed is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwired.guest import archive
from bellwired.guest.archive import Apt, ArchiveError, unpack
from bellwired.guest.fetch import BACKPORTS, SUITE
from kernels.signed_archive import SignedArchive

pytestmark = pytest.mark.slow


def apt(folder: Path) -> Apt:
    return Apt(folder, (SUITE, BACKPORTS))


def test_a_package_is_fetched_and_unpacked(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0", "two": "2.0"})
    shares: list[float] = []
    fetched = apt(tmp_path / "apt").download(["one"], shares.append)
    unpack(fetched, tmp_path / "root", shares.append)
    assert [path.name for path in fetched] == ["one_1.0_amd64.deb"]
    assert (tmp_path / "root/usr/share/one").read_text() == "1.0"
    assert shares[-1] == 1.0


def test_an_archive_without_a_signature_is_refused(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0"}, signed=False)
    with pytest.raises(ArchiveError, match="not signed"):
        apt(tmp_path / "apt").download(["one"])


def test_a_signature_by_another_key_is_refused(
    signed: SignedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed.publish({"one": "1.0"})
    with pytest.MonkeyPatch.context() as others:
        others.setattr(archive, "KEYRINGS", (tmp_path / "others.gpg",))
        (tmp_path / "others.gpg").touch()
        with pytest.raises(ArchiveError, match=r"NO_PUBKEY|not signed|Missing key"):
            apt(tmp_path / "apt").download(["one"])


def test_a_release_that_was_changed_after_it_was_signed_is_refused(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0"})
    release = signed.lists().parents[2] / "InRelease"
    release.write_text(release.read_text().replace("Origin: Debian", "Origin: debian"))
    with pytest.raises(ArchiveError, match=r"BADSIG|not signed|invalid"):
        apt(tmp_path / "apt").download(["one"])


def test_a_list_that_was_changed_is_refused(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0"})
    signed.lists().write_text(signed.lists().read_text().replace("one_1.0", "two_1.0"))
    with pytest.raises(ArchiveError, match=r"Hash Sum mismatch|unexpected size"):
        apt(tmp_path / "apt").download(["one"])


def test_a_package_that_was_changed_is_refused(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0"})
    package = signed.package("one")
    package.write_bytes(package.read_bytes().replace(b"1.0", b"6.6"))
    with pytest.raises(ArchiveError, match=r"Hash Sum mismatch|unexpected size"):
        apt(tmp_path / "apt").download_named(["one"])


def test_what_was_replaced_since_an_interrupted_run_is_not_used(signed: SignedArchive, tmp_path: Path) -> None:
    signed.publish({"one": "1.0"})
    apt(tmp_path / "apt").download(["one"])
    signed.publish({"one": "1.1"})
    assert [path.name for path in apt(tmp_path / "apt").download(["one"])] == ["one_1.1_amd64.deb"]


def test_without_gpgv_nothing_is_fetched(
    signed: SignedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "VERIFIERS", ("no-such-verifier",))
    with pytest.raises(ArchiveError, match="no no-such-verifier: Debian's signatures cannot be checked") as caught:
        apt(tmp_path / "apt")
    assert caught.value.hint == "install gpgv, or sqv"


def test_without_debians_keys_nothing_is_fetched(
    signed: SignedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "KEYRINGS", (tmp_path / "missing.gpg",))
    with pytest.raises(ArchiveError, match=r"missing.gpg: there are no keys to check Debian's signatures with"):
        apt(tmp_path / "apt")


def test_without_apt_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiveError, match="no apt-get: it fetches packages of Debian"):
        archive.find_mirror()


@pytest.mark.parametrize("address", ["nonsense", "http://host/debian sid main", "[trusted=yes] http://host/debian", ""])
def test_a_mirror_is_an_address_and_nothing_else(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(archive.MIRROR, address)
    monkeypatch.setattr(archive, "known_mirror", lambda _: "")
    with pytest.raises(ArchiveError, match="mirror of Debian"):
        archive.find_mirror()
