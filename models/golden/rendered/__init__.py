"""Golden sets that the project draws itself, from seeds: every label is known because it was drawn."""
