"""Processes that run devices: the fork server, the worker, the wire to them, and both of its ends."""
