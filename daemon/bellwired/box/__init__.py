"""The box around a device: what the process that runs it may do, and nothing else.

A worker enters its box after the fork and before it imports a plugin. See :mod:`bellwired.box.enter` for the order.
"""
