"""A live view of devices, in a terminal or a browser: ``bellwire view``. It needs the extra ``bellwire[view]``."""
