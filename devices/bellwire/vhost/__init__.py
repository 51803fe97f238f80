"""Data planes outside this process: a vhost back end moves a virtio device's data (docs/devices.md, vhost).

Section names are of QEMU's text of the vhost-user protocol (docs/interop/vhost-user.rst). Bellwire is the front end.
The back end is a program that listens on a UNIX socket, or the kernel. It is not trusted: each reply is checked, and
each wait for one has a limit.
"""
