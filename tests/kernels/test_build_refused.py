"""Folders in which no module can be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwired.guest.build import BuildError, build_modules
from bellwired.guest.kernel import Kernel


@pytest.mark.parametrize("name", ["my dir", "a:b"])
def test_a_path_that_make_would_part_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "driver"
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text("obj-m := x.o\n")
    with pytest.raises(BuildError, match=f"{name}/driver: kbuild cannot build in a path with a space or a colon"):
        build_modules(folder, Kernel(tmp_path / "bzImage", "6.12.0", build_tree=tmp_path))


def test_a_link_without_a_space_to_such_a_folder_does_not_help(tmp_path: Path) -> None:
    (tmp_path / "my dir").mkdir()
    (tmp_path / "link").symlink_to("my dir")
    with pytest.raises(BuildError, match="with a space or a colon"):
        build_modules(tmp_path / "link", Kernel(tmp_path / "bzImage", "6.12.0", build_tree=tmp_path))
