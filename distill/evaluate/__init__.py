"""What the student is worth: on held-out truth, beside its teacher and its base, through the served endpoint."""
