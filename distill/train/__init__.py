"""From kept rows to a student: full fine-tuning, LoRA and QLoRA, resumable to the step."""
