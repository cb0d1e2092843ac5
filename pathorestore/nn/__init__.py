"""Blocks with parameters that know no paper system."""
