"""Proof that the engine runs a family: a tiny checkpoint of its real architecture, started and asked.

The checkpoints have the family's own transformers classes for configuration, model, tokenizer and processor, in small
sizes, with **random weights**: they prove that the engine loads and runs the architecture, never that it answers well.
"""
