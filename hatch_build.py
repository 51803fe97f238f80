"""How the wheel is tagged: pure Python, on what it runs on."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# KVM's structs, PCI's registers and the micro guests are x86-64's. glibc 2.28 is what Python 3.11 and our dependencies'
# wheels are built for.
TAG = "py3-none-manylinux_2_28_x86_64"


class Tag(BuildHookInterface):
    """Says so to hatchling, for wheels and for editable ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the build."""
        build_data["pure_python"] = False
        build_data["tag"] = TAG
