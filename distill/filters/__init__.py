"""filter: drop what should not be trained on, and say what, why and with which examples."""
