"""Tests of drivers in a Linux guest: the plugin for pytest.

:mod:`bellwired.testing.plugin` is what pytest loads in every run, so it imports nothing of Bellwire until a test asks
for a machine. Tests import :func:`machine` and :func:`device` from :mod:`bellwire.pytest`.
"""
