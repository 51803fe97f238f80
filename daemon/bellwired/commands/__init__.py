"""The `bellwire` command, one file a command."""
