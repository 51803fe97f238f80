"""The `bellwire` command: one file for each command."""
