"""Whether our patches apply to the newest Linux that Debian's backports carry, and build there.

``python tests/nested/newest.py`` fetches the source (about 150 MB), applies the patches with no fuzz and compiles KVM
with warnings as errors: some minutes, and 3 GiB of disk while it lasts.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "guest")]

from bellwired.guest.archive import Apt, ArchiveError, run, unpack  # noqa: E402
from bellwired.guest.caches import caches  # noqa: E402
from nested.errors import BedError  # noqa: E402
from nested.kernel import PATCHES, check, run_quietly  # noqa: E402

SUITES = "trixie", "trixie-backports"
CONFIG = (
    "64BIT",
    "SMP",
    "HIGH_RES_TIMERS",
    "PCI",
    "ACPI",
    "VIRTUALIZATION",
    "KVM",
    "KVM_AMD",
    "KVM_INTEL",
    "WERROR",
    "NET",
)
OBJECTS = "arch/x86/kvm/"


def main() -> int:
    """Return a status."""
    folder = caches() / "nested"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".newest-") as name:
            print(f"KVM of {build(Path(name))} builds with our patches")
    except (BedError, ArchiveError, OSError) as error:
        print(f"newest: {error}\n{getattr(error, 'hint', '')}".strip(), file=sys.stderr)
        return 1
    return 0


def build(folder: Path) -> str:
    """Fetch, patch and compile in ``folder``; the package's name."""
    apt = Apt(folder / "apt", SUITES)
    apt.update()
    listed = run("apt-cache", *apt.options, "search", "--names-only", r"^linux-source-[0-9.]+$")
    names = re.findall(r"^(linux-source-[0-9.]+) ", listed, re.MULTILINE)
    newest = max(names, key=lambda name: [int(part) for part in name.rpartition("-")[2].split(".")])
    (package,) = apt.download_named([newest])
    print(f"{package.name}: unpacking", flush=True)
    unpack([package], folder / "package")
    (archive,) = (folder / "package" / "usr" / "src").glob("linux-source-*.tar.xz")
    tree = folder / "tree"
    tree.mkdir()
    run_quietly(["tar", "--extract", "--file", archive, "--directory", tree, "--strip-components", "1"], folder)
    for patch in sorted(PATCHES.glob("*.patch")):
        print(f"{patch.name}: applying", flush=True)
        run_quietly(["patch", "--strip", "1", "--fuzz", "0", "--forward", "--input", patch], tree)
    (folder / "config").write_text("".join(f"CONFIG_{option}=y\n" for option in CONFIG))
    run_quietly(["make", "-s", "tinyconfig"], tree)
    run_quietly(["scripts/kconfig/merge_config.sh", "-m", ".config", folder / "config"], tree)
    run_quietly(["make", "-s", "olddefconfig"], tree)
    print(f"{OBJECTS}: compiling", flush=True)
    run_quietly(["make", "-s", "-j2", OBJECTS], tree)
    for built in ("virt/kvm/ioregion.o", "virt/kvm/eventfd.o", "arch/x86/kvm/svm/svm.o", "arch/x86/kvm/vmx/vmx.o"):
        if not (tree / built).exists():
            raise BedError(f"{built} was not built: the source's configuration has changed, it seems")
    return package.name


if __name__ == "__main__":
    sys.exit(main())
