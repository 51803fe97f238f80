"""Prints the distribution's packages that the virtual environment needs: its Python, and packages that pip found."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

SYSTEM = Path("/usr/lib/python3/dist-packages")


def needed(name: str, found: dict[str, Distribution]) -> None:
    """Add a distribution and all that it needs."""
    if name in found:
        return
    found[name] = distribution(name)
    for text in found[name].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name.lower().replace("_", "-"), found)


def package(of: Distribution) -> str:
    """The Debian package that a distribution comes in."""
    folder = next(path for path in SYSTEM.iterdir() if path.samefile(str(of.locate_file(of._path))))  # type: ignore[attr-defined]
    said = subprocess.run(["dpkg-query", "--search", folder], capture_output=True, text=True, check=True).stdout
    return said.partition(":")[0].partition(",")[0]


def main() -> None:
    """Print it as a substitution variable."""
    found: dict[str, Distribution] = {}
    needed("bellwire", found)
    theirs = {package(of) for of in found.values() if Path(str(of.locate_file(""))) == SYSTEM}
    minor = sys.version_info.minor
    words = [f"python3 (>= 3.{minor}~)", f"python3 (<< 3.{minor + 1}~)", *sorted(theirs)]
    print(f"bellwire:Depends={', '.join(words)}")


if __name__ == "__main__":
    main()
