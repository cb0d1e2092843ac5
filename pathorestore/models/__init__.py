"""Networks, one per file, each with its frozen config above it."""
