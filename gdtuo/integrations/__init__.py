"""One file for each outside framework, imported by nobody but its users."""
