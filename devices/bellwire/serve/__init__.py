"""A worker: a loop that serves one device to a client on a socket."""
