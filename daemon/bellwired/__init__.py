"""The ``bellwire`` command: run a device, run a small VM, show what a doorbell costs."""
