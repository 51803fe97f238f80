"""A worker: the loop, and what joins one device to a client on a socket."""
