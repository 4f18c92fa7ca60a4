"""Answers that were given before: what makes two requests the same, what may be kept, and where."""
