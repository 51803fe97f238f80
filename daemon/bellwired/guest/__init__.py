"""A guest to try a device in: QEMU, Linux, and a channel that runs commands there."""
