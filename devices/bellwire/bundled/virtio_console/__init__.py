"""virtio-console: ports that carry bytes."""

from bellwire.bundled.virtio_console.device import VirtioConsole

__all__ = ["VirtioConsole"]
