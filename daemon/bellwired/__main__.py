"""``python -m bellwired``: the same as the ``bellwire`` command."""

import contextlib
import os
import sys

if not sys.flags.safe_path:
    with contextlib.suppress(FileNotFoundError):  # the current folder is gone: -m has put nothing there
        if sys.path[0] == os.getcwd():  # -m puts it first, and others may be able to write it
            del sys.path[0]

from bellwired.start import main

raise SystemExit(main())
