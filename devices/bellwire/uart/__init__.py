"""Parts of the serial port: what its registers say, and its FIFOs."""
