"""What a package manager would put beside the Python package: manual pages, completions, units, and a way back."""
