"""Captures: what goes on between a guest and its device, in files that Wireshark and Perfetto read."""
