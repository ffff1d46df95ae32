"""How fast the parts of a study run here."""
