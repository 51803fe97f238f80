"""Register maps: what a driver must know of a device, read from one format and written in another."""
