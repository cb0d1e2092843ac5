"""Whole slides: read, restored in bounded memory, written as pyramids, looked at."""
