"""The ``bellwire`` command and the daemon ``bellwired``: serve devices, boot a small VM, measure doorbells."""
