"""Pure functions without state: noise fields, optics, colour, edges."""
