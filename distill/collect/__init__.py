"""collect: ask the teachers about every row, within the dollars, and keep every answer with its lineage."""
