"""bellwired: hosts any number of devices, each in a worker process of its own."""
