"""Back ends, devices and QEMU are all one user's, and the user has no privileges."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bellwired.guest.caches import caches

pytestmark = [pytest.mark.guest, pytest.mark.long]

NOBODY = 65534
HERE = Path(__file__).parent
TEST = f"{HERE}/test_vhost.py::test_linux_uses_a_folder_a_disk_and_a_network_of_real_back_ends[stock]"
TO_READ = "-all,+dac_read_search"
"""The one capability that is left: it lets the user read a checkout and a cache that may be root's."""


@pytest.mark.skipif(os.geteuid() != 0, reason="to become a user takes root, and without it the other tests show this")
@pytest.mark.usefixtures("tools")
def test_a_user_without_privileges_runs_virtiofsd_a_storage_daemon_passt_their_devices_and_qemu() -> None:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    user += ["--securebits=+no_setuid_fixup"]  # access(2) counts the capability, too
    user += [f"--bounding-set={TO_READ}", f"--inh-caps={TO_READ}", f"--ambient-caps={TO_READ}"]
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        places = {"HOME": folder, "TMPDIR": folder, "XDG_RUNTIME_DIR": folder, "XDG_CACHE_HOME": f"{caches().parent}"}
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/test", TEST]
        done = subprocess.run(
            [*user, *words], env=os.environ | places, cwd=HERE.parents[1], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
        owners = {path.lstat().st_uid for path in Path(folder).rglob("*")}
        assert owners == {NOBODY}, "all of it was that user's"
