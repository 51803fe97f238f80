"""Headers for Debian's kernels come from its archive; other kernels bring their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.headers import tree_of
from bellwired.guest.kernel import Kernel, KernelError
from kernels.signed_archive import SignedArchive


def test_a_kernel_with_a_build_tree_needs_no_headers(tmp_path: Path) -> None:
    assert tree_of(Kernel(tmp_path / "bzImage", "6.12.0", build_tree=tmp_path)) == tmp_path


@pytest.mark.parametrize("release", ["6.12.0", "6.12.0-amd64", "6.12.1-arch1-1", "6.12.1+deb13-cloud-arm64"])
def test_a_kernel_that_is_not_debians_needs_a_tree(release: str, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no headers of Linux .* are known") as caught:
        tree_of(Kernel(tmp_path / "bzImage", release))
    assert "build tree" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("release", ["6.12.1+deb13-cloud-amd64", "6.1.0-9-amd64"])
def test_headers_that_the_archive_has_no_more_are_an_error(signed: SignedArchive, tmp_path: Path, release: str) -> None:
    signed.publish({"libc6": "1.0"})
    with pytest.raises(ArchiveError, match=r"has no headers of Linux .* any more") as caught:
        tree_of(Kernel(tmp_path / "bzImage", release))
    assert caught.value.hint.startswith("remove ")
