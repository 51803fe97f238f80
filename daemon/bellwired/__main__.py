"""``python -m bellwired``: the same as the ``bellwire`` command."""

from bellwired.cli import main

raise SystemExit(main())
