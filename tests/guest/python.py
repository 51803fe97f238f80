"""Python for the guest: the release's own, and of its library what a program imports."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bellwired.guest.toolbox import Toolbox

PROGRAM = "usr/bin/python3.13"
LIBRARY = "usr/lib/python3.13"
LIST = """
import sys, {modules}
files = {{module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)}}
files |= {{line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}}
print(*files, sep="\\n")
"""


def python(tools: Toolbox, modules: Sequence[str]) -> dict[str, bytes | Path]:
    """The interpreter and the library's ``modules``, with all that they import: where in the guest, and where here."""
    words = [*tools.command(PROGRAM), "-S", "-B", "-c", LIST.format(modules=", ".join(modules))]
    env = {"PYTHONHOME": str(tools.root / "usr"), "PATH": "/usr/bin:/bin"}
    listed = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    found: dict[str, bytes | Path] = {**tools.program(PROGRAM), f"{LIBRARY}/os.py": tools.root / LIBRARY / "os.py"}
    for file in (Path(line) for line in listed.splitlines()):
        path = str(file.relative_to(tools.root))
        found[path] = file
        if file.suffix == ".so":
            found |= tools.program(path)
    return found
