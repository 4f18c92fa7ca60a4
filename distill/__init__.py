"""A teacher's answers in, rows to train a student on out."""
