"""What the guest tests run on: what ``bellwire boot`` runs on, and programs for the guest.

``python tests/guest/provision.py`` fetches it from Debian into a cache folder (about 120 MB to fetch, 350 MB on disk, a
quarter of a minute and no root), and is done at once when it is there.
"""

from __future__ import annotations

import sys

from bellwired.guest.archive import ArchiveError
from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.headers import tree_of
from bellwired.guest.progress import Progress, shown, silent
from bellwired.guest.toolbox import Toolbox

PROGRAMS = ("e2fsprogs", "nvme-cli", "fio", "iperf3", "systemd", "pciutils", "passt", "qemu-utils")


def provision(progress: Progress = silent) -> Toolbox:
    """The tools, fetched if they are not there yet. An ArchiveError says what stands in the way."""
    return fetch_guest_tools(progress, PROGRAMS)


def main() -> int:
    """Fetch what is missing, and say what there is."""
    try:
        with shown() as progress:
            tools = provision(progress)
            headers = tree_of(tools.kernel, progress)
    except (ArchiveError, OSError) as error:
        print(f"cannot provide what the guest tests need: {error}", file=sys.stderr)
        return 1
    print(tools.describe())
    print(f"the kernel's headers: {headers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
