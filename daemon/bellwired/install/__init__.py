"""Installs the files beside the Python package (manual pages, completions, units), and removes them."""
