"""virtio-console: a console and named ports (virtio 1.2 §5.3)."""

from bellwire.bundled.virtio_console.device import VirtioConsole

__all__ = ["VirtioConsole"]
