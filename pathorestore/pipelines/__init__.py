"""Whole systems composed of parts, and what files need: tiles, image files, provenance, batches."""
