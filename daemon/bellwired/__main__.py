"""``python -m bellwired``: the same as the ``bellwire`` command."""

from bellwired.start import main

raise SystemExit(main())
