"""How restorations are judged: many images, several methods, one report."""
